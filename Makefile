# Every target first makes the environment (.venv) when it is missing or older than the files that define it.
# `make help` lists the targets: a target's line there is what stands behind its ##.
SHELL  := /bin/bash
PINNED := $(shell sed -n 's/^pinned_python = //p' settings.ini)
PYTHON ?= $(or $(shell for p in python$(basename $(PINNED)) python3; do test "$$($$p -V 2>/dev/null)" = "Python $(PINNED)" && echo $$p && break; done),python3)
PRESET ?= quick
JOBS   ?= 1
STUDY  ?= $(sort $(patsubst nbs/studies/%.ipynb,%,$(filter-out nbs/studies/_%,$(wildcard nbs/studies/*.ipynb))))
RUNS   := $(STUDY:%=run-%)
DRAWN  := $(STUDY:%=draw-%)

BIN     := .venv/bin
STAMP   := .venv/.memlab
EXTRAS  := .[run,lab,hub,dev,docs]
JUPYTER := $(wildcard tools/jupyter/*)

.PHONY: help reproduce test lab check readme outputs docs site-test bench setup clean
.PHONY: $(RUNS) $(DRAWN)
.DEFAULT_GOAL := reproduce

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "STUDY=    one of: $(STUDY); every study when left out"
	@echo "PRESET=   quick (default, about a minute), cpu (hours on a laptop), gpu (planned for an hour on a GPU, never run) or full (days; of some studies)"
	@echo "JOBS=     runs at a time (default 1), up to as many as there are cores"
	@echo "LAB=      for site-test: a study to run in JupyterLab at quick; none when left out"
	@echo "ARGS=     more arguments, for jupyter lab, tools/outputs.py or bench/run.py"
	@echo "PYTHON=   what to make .venv with (default: Python $(PINNED), where there is one, else python3)"

setup: $(STAMP) ## make .venv; all targets but help, site-test and clean do so first [PYTHON]

$(STAMP): settings.ini setup.py constraints.txt $(JUPYTER)
	@echo "setting up .venv (about a minute; the download of torch is the long part)"
	@export PYTHONWARNINGS=ignore; if command -v uv >/dev/null; then \
	  test -x $(BIN)/python || uv venv --quiet --seed --python $(PINNED) .venv || uv venv --seed --python $(PYTHON) .venv; \
	  UV_FIND_LINKS=$${PIP_FIND_LINKS-} uv pip install --python $(BIN)/python -c constraints.txt -C editable_mode=compat -e '$(EXTRAS)'; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt --config-settings editable_mode=compat -e '$(EXTRAS)'; \
	fi
	@test "$$($(BIN)/python -V)" = "Python $(PINNED)" || echo "this is $$($(BIN)/python -V), the committed runs read the texts of Python $(PINNED): studies of text would read others"
	@mkdir -p .venv/etc/jupyter .venv/etc/ipython .venv/share/jupyter/lab/settings
	@cp tools/jupyter/jupyter_server_config.py .venv/etc/jupyter/
	@cp tools/jupyter/ipython_kernel_config.py .venv/etc/ipython/
	@cp tools/jupyter/overrides.json .venv/share/jupyter/lab/settings/
	@! git rev-parse --git-dir >/dev/null 2>&1 || git config --local include.path ../.gitconfig
	@touch $@

reproduce: $(RUNS) ## compute what is missing, execute the notebooks, print the verdicts, two studies at a time with make -j2 [STUDY PRESET JOBS]
	@$(BIN)/memlab scoreboard $(STUDY)
	@echo; echo "Executed notebooks:"; for study in $(STUDY); do echo "  build/notebooks/$$study/$(PRESET).ipynb"; done

$(RUNS): run-%: setup
	@$(BIN)/memlab run $* --preset $(PRESET) --jobs $(JOBS)

# pytest comes last, so that its closing line is the last word.
test: export OMP_NUM_THREADS = 1
test: export PYTHONDONTWRITEBYTECODE =
test: check ## check, then the tests of the library notebooks, then pytest
	$(BIN)/nbdev_test --n_workers 2 --skip_folder_re '^[_.]|^studies$$' --skip_file_re '^[_.]|^index'
	$(BIN)/python -m pytest -q tests -n 2 --dist loadfile --no-loadscope-reorder --durations=15

check: setup ## do the notebooks, the package and README.md agree?
	$(BIN)/python tools/check.py
	$(BIN)/python tools/readme.py --check

readme: setup ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

outputs: export OMP_NUM_THREADS = 1
outputs: setup ## execute the notebooks of the library and keep what they show: about six minutes [ARGS: notebooks]
	$(BIN)/python tools/outputs.py $(ARGS)

lab: setup ## JupyterLab [ARGS]
	$(BIN)/jupyter lab $(ARGS)

docs: $(DRAWN) ## the site, in build/html: studies as their committed runs show them, others at preset quick [STUDY JOBS]
	$(BIN)/python tools/site/build.py

$(DRAWN): draw-%: setup
	@if test -e data/results/$*/cpu/runs.parquet; then $(BIN)/memlab run $* --preset cpu --draw; else $(BIN)/memlab run $* --jobs $(JOBS); fi

site-test: ## build/html, as readers find it in a browser, and a study in JupyterLab [LAB]; skipped where there is no node or no Chromium
	@if ! command -v node >/dev/null; then echo "site-test is skipped: no node"; test -z "$$CI"; else \
	  node tools/site/browse.mjs && if test -n "$(LAB)"; then node tools/site/browse.mjs --lab $(LAB); fi; fi

bench: setup ## our speed beside other people's code [ARGS]
	$(BIN)/python bench/run.py $(ARGS)

clean: ## remove what was built, except build/runs, which may stand for hours of work
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} +; fi
	@rm -rf dist *.egg-info .cache .pytest_cache
	@find memlab nbs tests tools bench -name __pycache__ -o -name .ipynb_checkpoints 2>/dev/null | xargs rm -rf
	@if [ -d build/runs ]; then echo "kept build/runs (computed runs); remove it by hand to start afresh"; fi
