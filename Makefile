# Needs Python 3.11+, make and a network to the registries; each target sets up the rest itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
BENCH := benchmarks/.venv
BENCH_ARGS ?=

.PHONY: help demo test lint format bench clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/demo ## the main job, with real HTTP, on screen
	@$(BIN)/wattfare demo

test: lint ## the whole test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/installed ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH)/installed ## what it costs, measured; writes benchmarks/RESULTS.md
	$(BENCH)/bin/python -m benchmarks $(BENCH_ARGS)

clean: ## forget the virtual environments
	rm -rf $(VENV) $(BENCH)

PIP := python -m pip install --quiet --disable-pip-version-check

%/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $*
	$*/bin/$(PIP) --upgrade "pip>=25.1"
	@touch $@

# The demo needs less than the tests do, and is there sooner.
$(VENV)/demo: $(VENV)/pip pyproject.toml
	$(BIN)/$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/installed: $(VENV)/pip pyproject.toml
	$(BIN)/$(PIP) --editable . --group test --group lint
	@touch $@

# An environment of its own, so that the tests do not run on its event loop.
$(BENCH)/installed: $(BENCH)/pip pyproject.toml
	$(BENCH)/bin/$(PIP) --editable . --group bench
	@touch $@
