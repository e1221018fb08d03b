"""Installed into .venv/etc/jupyter by `make setup`: what JupyterLab makes of a notebook when it opens and saves it.

It saves notebooks the way `nbdev_clean` would; a study keeps its stored outputs, whatever was run; and opening a notebook changes nothing.
"""
from pathlib import Path

import nbformat
from ipykernel.ipkernel import IPythonKernel
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from nbdev.clean import clean_jupyter


def keep_stored(content, file):
    "Give the cells of a study that have not changed the outputs that `memlab run STUDY --store` put into its file: a run at another preset shows toys."
    if file.parent.parts[-2:] != ("nbs", "studies") or not file.is_file(): return
    stored = {cell.id: cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"}
    if not any(cell.outputs for cell in stored.values()): return
    for cell in content["cells"]:
        old = stored.get(cell.get("id"))
        if old and "outputs" in cell and "".join(cell["source"]) == old.source: cell["outputs"] = old.outputs


def as_kept(model, path, contents_manager, **_):
    "A notebook as the repository keeps it."
    if model["type"] == "notebook": keep_stored(model["content"], Path(contents_manager._get_os_path(path)))
    clean_jupyter(model=model, path=path)


def as_opened(metadata):
    "Fill in what JupyterLab writes into a notebook once its kernel has started, which would mark it as changed."
    kernel = metadata.get("kernelspec", {}).get("name", "python3")
    try: spec = KernelSpecManager().get_kernel_spec(kernel)
    except NoSuchKernel: return
    metadata["kernelspec"] = dict(name=kernel, display_name=spec.display_name, language=spec.language)
    if kernel == "python3": metadata["language_info"] = IPythonKernel.language_info.copy()


class Files(AsyncLargeFileManager):
    "Files whose notebooks are opened as JupyterLab would have them."
    async def get(self, path, content=True, type=None, format=None, **more):
        model = await super().get(path, content, type, format, **more)
        if content and model["type"] == "notebook": as_opened(model["content"]["metadata"])
        return model


c.ServerApp.contents_manager_class = Files  # noqa: F821 (Jupyter provides `c`)
c.ContentsManager.pre_save_hook = as_kept  # noqa: F821
