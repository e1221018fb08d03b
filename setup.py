"Everything about the package is in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=["="])
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
lib, extra = cfg["lib_path"], "_requirements"
extras = {key.removesuffix(extra): cfg[key].split() for key in cfg if key.endswith(extra)}
for name in ("lab", "cluster"): extras[name] += extras["run"]
stages = {"1": "Planning", "2": "Pre-Alpha", "3": "Alpha", "4": "Beta", "5": "Production/Stable"}

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    license=cfg["license"], author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"]},
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    classifiers=[f"Development Status :: {cfg['status']} - {stages[cfg['status']]}", f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", "Programming Language :: Python :: 3", "Typing :: Typed"],
    python_requires=f">={cfg['min_python']}", packages=find_packages(include=[lib, f"{lib}.*"]), package_data={lib: ["py.typed"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{lib}={lib}._modidx:d"]},
)
