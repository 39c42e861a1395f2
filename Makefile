# Every command makes the environment that it needs, with the versions of constraints.txt, in $(VENV).
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help reproduce test test-all lab site notebooks lint lowest clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# Byte code is compiled when a module is first imported; where PYTHONDONTWRITEBYTECODE is set, each process would do so anew.
INSTALL := pip install --quiet --no-compile --disable-pip-version-check
# uv unpacks 6 GB in a third of pip's time; where it fails (a mirror that only pip is told of, say), pip does it.
UV := UV_CACHE_DIR=$(VENV)/.uv $(BIN)/uv pip install --quiet --python $(BIN)/python
WANTED := -c constraints.txt -e '.[test,data,cluster]'
unexport PYTHONDONTWRITEBYTECODE
RUN := runs/reproduce-$(shell date +%Y%m%d-%H%M%S)

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	{ $(BIN)/python -m $(INSTALL) --only-binary :all: -c constraints.txt uv && $(UV) $(WANTED); } || \
		$(BIN)/python -m $(INSTALL) $(WANTED)
	rm -rf $(VENV)/.uv
	touch $@

reproduce: $(READY)  ## train the quick profile, write tables and figures to a fresh folder, compare with results/quick
	@$(BIN)/python notebooks/reproduce.py $(RUN)

# Two workers with a thread each.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --no-loadscope-reorder --nbval tests notebooks

test: $(READY)  ## ruff, pytest, and nbval on three notebooks: minutes
	$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .
	$(PYTEST) -m "not slow"

test-all: test  ## and kills, clusters, sweeps, the site, the browser, nbval on every notebook
	$(PYTEST) -m slow

lab: $(READY)  ## open JupyterLab on the notebooks
	JUPYTER_CONFIG_PATH=$(CURDIR)/notebooks/.lab $(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/README.md

$(VENV)/.site: $(READY)
	$(BIN)/python -m $(INSTALL) -c constraints.txt -e '.[site]'
	touch $@

site: $(VENV)/.site  ## the executed notebooks and results as web pages that need no network: site/html/index.html
	$(BIN)/python -m sphinx -q -W -c docs -d site/doctrees . site/html
	@echo "Open site/html/index.html"

notebooks: $(READY)  ## run every notebook in place, to commit its outputs
	DDLIB_PROGRESS=0 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False $(NOTEBOOKS)
	$(BIN)/ruff format -q notebooks

lint: $(READY)  ## format and check code and notebooks
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lowest:  ## pytest with the lowest versions that pyproject.toml admits, in .venv-lowest
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*[d.replace(">=", "==") for e in (p["dependencies"], *p["optional-dependencies"].values()) for d in e], sep="\n")' \
		> .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m $(INSTALL) -c .venv-lowest/constraints.txt -e '.[test,data,cluster]'
	.venv-lowest/bin/pytest

clean:  ## delete caches and what 'make reproduce' wrote; the environment and results/ stay
	rm -rf runs site .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
