# Every target first makes the environment (.venv) when it is missing or older than the files that define it.
#   make reproduce [STUDY=residual_growth] [PRESET=quick|cpu|gpu|full] [JOBS=1]     make test
#   make lab | check | readme | docs | bench | setup | clean
SHELL  := /bin/bash
PYTHON ?= python3
PRESET ?= quick
JOBS   ?= 1
STUDY  ?= $(sort $(patsubst nbs/studies/%.ipynb,%,$(filter-out nbs/studies/_%,$(wildcard nbs/studies/*.ipynb))))

BIN     := .venv/bin
STAMP   := .venv/.memlab
EXTRAS  := .[lab,hub,dev,docs]
JUPYTER := $(wildcard tools/jupyter/*)

.PHONY: reproduce test lab check readme docs bench setup clean
.DEFAULT_GOAL := reproduce

setup: $(STAMP)

$(STAMP): settings.ini setup.py constraints.txt $(JUPYTER)
	@echo "setting up .venv (about a minute; the download of torch is the long part)"
	@export PYTHONWARNINGS=ignore; if command -v uv >/dev/null; then \
	  test -x $(BIN)/python || uv venv --seed --python $(PYTHON) .venv; \
	  UV_FIND_LINKS=$${PIP_FIND_LINKS-} uv pip install --python $(BIN)/python -c constraints.txt -e '$(EXTRAS)'; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(EXTRAS)'; \
	fi
	@mkdir -p .venv/etc/jupyter .venv/etc/ipython .venv/share/jupyter/lab/settings
	@cp tools/jupyter/jupyter_server_config.py .venv/etc/jupyter/
	@cp tools/jupyter/ipython_kernel_config.py .venv/etc/ipython/
	@cp tools/jupyter/overrides.json .venv/share/jupyter/lab/settings/
	@! git rev-parse --git-dir >/dev/null 2>&1 || git config --local include.path ../.gitconfig
	@touch $@

# Compute (or find) the runs of every study, execute its notebook, print the verdicts.
reproduce: setup
	@set -e; for study in $(STUDY); do $(BIN)/memlab run $$study --preset $(PRESET) --jobs $(JOBS); done
	@$(BIN)/memlab scoreboard
	@echo; echo "Executed notebooks:"; for study in $(STUDY); do echo "  build/notebooks/$$study/$(PRESET).ipynb"; done

# pytest comes last, so that its closing line is the last word.
test: export OMP_NUM_THREADS = 1
test: check
	$(BIN)/nbdev_test --n_workers 2 --skip_folder_re '^[_.]|^studies$$' --skip_file_re '^[_.]|^index'
	$(BIN)/python -m pytest -q tests

check: setup
	$(BIN)/python tools/check.py
	$(BIN)/python tools/readme.py --check

readme: setup
	$(BIN)/python tools/readme.py

lab: setup
	$(BIN)/jupyter lab $(ARGS)

docs: setup
	@set -e; for study in $(STUDY); do \
	  test -e build/notebooks/$$study/$(PRESET).ipynb || $(BIN)/memlab run $$study --preset $(PRESET) --jobs $(JOBS); done
	$(BIN)/python tools/site/build.py

bench: setup
	$(BIN)/python bench/run.py $(ARGS)

# The runs in build/runs may stand for hours of work: they stay.
clean:
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} +; fi
	@rm -rf dist *.egg-info .cache .pytest_cache
	@find memlab nbs tests tools bench -name __pycache__ -o -name .ipynb_checkpoints 2>/dev/null | xargs rm -rf
	@if [ -d build/runs ]; then echo "kept build/runs (computed runs); remove it by hand to start afresh"; fi
