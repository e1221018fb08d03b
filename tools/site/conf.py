"Sphinx reads this; names and versions come from settings.ini. Nothing on a page comes from another site."
import builtins
import inspect
import re
import sys
from configparser import ConfigParser
from pathlib import Path

from fastcore.docments import docments
from sphinx.addnodes import pending_xref

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
from assets import FOLDER, MATHJAX  # noqa: E402

ini = ConfigParser()
ini.read(ROOT / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
project, author, release, copyright = cfg["title"], cfg["author"], cfg["version"], cfg["copyright"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax", "sphinx_copybutton"]
default_role = "py:obj"
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "undoc-members": True}
viewcode_follow_imported_members = False  # an inherited method would lend its page to the module of its parent

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = [str(FOLDER)] * FOLDER.exists() + [str(Path(__file__).parent / "static")]
html_css_files = ["narrow.css", "explorer.css"]
html_js_files = [("explorer.js", {"defer": "defer"})]
html_favicon = "static/icon.svg"
html_theme_options = {"source_repository": cfg["git_url"], "source_branch": cfg["branch"], "source_directory": "nbs/"}
has_math = (FOLDER / MATHJAX).exists()
if not has_math: html_theme_options["announcement"] = "This copy was built without npm: formulas are shown as TeX source."
html_math_renderer = "mathjax" if has_math else "source"
mathjax_path = MATHJAX
nb_ipywidgets_js = {}   # controls need a kernel, and say so


def literal(text: str) -> str:
    "A line of a docstring for reStructuredText: what stands outside `backticks` means nothing but itself."
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(part if i % 2 else re.sub(r"([*|_\\])", r"\\\1", part) for i, part in enumerate(parts))


def docstring(app, what, name, obj, options, lines):
    "Keep a docstring's line breaks, and say what the comments beside the parameters say."
    if len(lines) > 1: lines[:] = ["| " + literal(line) if line.strip() else "" for line in lines]
    else: lines[:] = map(literal, lines)
    if not (inspect.isroutine(obj) or inspect.isclass(obj)) or inspect.isbuiltin(obj): return
    described = docments(obj, full=True)
    lines.append("")
    for parameter, about in described.items():
        field = "returns" if parameter == "return" else f"param {parameter}"
        if about.docment: lines.append(f":{field}: {literal(' '.join(about.docment.split()))}")


def no_source(app, pagename, templatename, context, doctree):
    "Pages of the API and of claims are made here: there is nothing to view or edit."
    if pagename.startswith(("api/", "claims/")): context["page_source_suffix"] = ""


def excerpts(app, pagename, templatename, context, doctree):
    "The page of searches quotes pages by a script of our own."
    if pagename == "search": app.add_js_file("search.js", loading_method="defer")


def plain_builtins(app, doctree):
    "Annotations such as `object` mean Python's, whatever fields of that name the package has."
    for node in list(doctree.findall(pending_xref)):
        if node.get("refdomain") == "py" and hasattr(builtins, node["reftarget"]): node.replace_self(node.children)


def no_builtins(app):
    "Python's own module has no source to show, so that nothing may link to it."
    getattr(app.env, "_viewcode_modules", {}).pop("builtins", None)
    return []


def tex(self, node):
    "A formula as its own TeX source."
    from docutils.nodes import SkipNode
    self.body.append(self.starttag(node, "code", "") + self.encode(node.astext()) + "</code>")
    raise SkipNode


def setup(app):
    app.connect("autodoc-process-docstring", docstring)
    app.connect("doctree-read", plain_builtins)
    app.connect("html-page-context", no_source)
    app.connect("html-page-context", excerpts)
    app.connect("html-collect-pages", no_builtins, priority=1)
    if not has_math: app.add_html_math_renderer("source", (tex, None), (tex, None))
