"Installed into .venv/etc/ipython by `make setup`: headless kernels say nothing but errors."
c.Application.log_level = 40  # noqa: F821 (IPython provides `c`)
