# One command each: the first run makes a virtual environment in .venv and installs into it; later runs start at once.
#
#   make train ARGS="--model gat"    another Python: PYTHON=python3.12    another place: VENV=/tmp/graphlossy
#   pip options (an index, a proxy): PIP_FLAGS="..."                      other versions: CONSTRAINTS=/dev/null

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help train test slow lint bench frameworks gpu-check clean

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PIP_FLAGS ?=
ARGS ?=

BIN := $(VENV)/bin
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --no-input $(PIP_FLAGS) -c $(CONSTRAINTS)
SETUP := pyproject.toml setup.py constraints.txt $(wildcard graphlossy/core/csrc/*)

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

train: $(VENV)/.installed ## train the default model on the embedded graph, plain and compressed side by side
	$(BIN)/graphlossy train $(ARGS)

test: $(VENV)/.installed-test ## run the tests, but for those marked slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

slow: $(VENV)/.installed-test ## run the tests marked slow: real builds, killed processes, every GPU architecture
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m slow $(ARGS)

lint: $(VENV)/.installed-test ## check style, formatting and the types of the public API
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test ## measure again every figure in benchmarks/ (see benchmarks/README.md)
	$(BIN)/python -m benchmarks $(ARGS)

frameworks: $(VENV)/.installed-test ## test inside RecBole, FuxiCTR, PyGOD, PyOD and others (an environment of their own)
	$(PYTHON) -m venv --clear $(VENV)/frameworks
	printf "import site; site.addsitedir('%s')\n" "$$($(BIN)/python -c '$(PURELIB)')" \
	  > "$$($(VENV)/frameworks/bin/python -c '$(PURELIB)')/tests.pth"
	$(VENV)/frameworks/bin/python -m pip --disable-pip-version-check install --no-input --quiet $(PIP_FLAGS) --no-deps \
	  -r tests/frameworks.txt
	OMP_NUM_THREADS=1 $(VENV)/frameworks/bin/python -m pytest $(ARGS) tests/recsys/test_framework_*.py
	OMP_NUM_THREADS=1 $(VENV)/frameworks/bin/python -m pytest $(ARGS) tests/outliers/test_engines*.py tests/outliers/test_outlier_ray.py

gpu-check: $(VENV)/.installed-test ## on a machine with a GPU: kernel parity, then the GPU benchmarks
	$(BIN)/python -m graphlossy
	$(BIN)/pytest -m cuda $(ARGS)
	$(BIN)/python -m benchmarks --device cuda

clean: ## remove the environment, caches and build outputs (run folders stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f graphlossy/core/*.so

$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null \
	  || { echo "graphlossy: '$(PYTHON)' was not found; install Python 3.10 or newer, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "graphlossy: needs Python 3.10 or newer and '$(PYTHON)' is $$($(PYTHON) --version); name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
	  || { echo "graphlossy: '$(PYTHON)' cannot make virtual environments; on Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# torch comes first and pinned: left to the resolver, another build of it would be downloaded.
$(VENV)/.installed: $(VENV)/.created $(SETUP)
	@echo "Installing graphlossy and torch into $(VENV) (about a gigabyte the first time)"
	$(INSTALL) torch
	$(INSTALL) --quiet -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --quiet -e ".[test]"
	@touch $@
