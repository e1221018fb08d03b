"Installed into .venv/etc/jupyter by `make setup`: JupyterLab saves notebooks the way `nbdev_clean` would."
from nbdev.clean import clean_jupyter

c.ContentsManager.pre_save_hook = clean_jupyter  # noqa: F821 (Jupyter provides `c`)
