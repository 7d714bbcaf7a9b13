# Needs Python 3.11 or newer, make and a network to the package registries.
# Each target sets up the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := benchmarks/.venv
TOOLS := .venv-tools
FUZZ := .venv-fuzz
# How many tests run at a time.
JOBS ?= auto
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
PYTEST_ARGS ?=
# Those that take longer with more examples and more deaths of processes, and are not fast.
LONG = tests/service/test_ledger.py tests/service/test_deaths.py tests/service/test_real_prompts.py tests/hostile/test_large_bodies.py tests/hostile/test_stop.py
BENCH_ARGS ?=
# How long `make fuzz` may take; without it, it runs a million inputs.
FUZZ_SECONDS ?=
FUZZ_ARGS ?=
# Which AI libraries `make test-libraries` runs: names, or `all`.
LIBRARIES ?= all
# Which faults `make test-mutants` tries: names, or all.
MUTANTS ?=
# The Chromium that `make test-browsers` drives. Without it: that of the machine, or of apt.
CHROMIUM ?=

.PHONY: help demo test test-fast test-long test-newest test-libraries test-browsers test-mutants screenshots fuzz lint format coverage bench lock upgrade clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo ## show the main job on screen, with real HTTP
	@$(BIN)/wattfare demo

# The linters and the type checker run beside the tests. Their report comes last.
test: $(VENV)/test ## run the linters, the type checker and all tests but a few long ones
	@report=$$(mktemp); $(MAKE) --no-print-directory lint >$$report 2>&1 & linters=$$!; \
		WATTFARE_TEST_EXAMPLES=0.5 $(PYTEST) -m 'not long' $(PYTEST_ARGS); tests=$$?; \
		wait $$linters; linted=$$?; cat $$report; rm -f $$report; \
		exit $$((tests ? tests : linted))

test-fast: $(VENV)/test ## run the tests that need no server and no database
	WATTFARE_TEST_EXAMPLES=0.2 $(PYTEST) -m fast $(PYTEST_ARGS)

# Half of its time goes to the session `lowest`, which runs what `make test` runs.
test-long: $(VENV)/test $(TOOLS)/tools ## run longer tests, and the tests with other versions
	$(PYTEST) -m long $(PYTEST_ARGS)
	WATTFARE_TEST_EXAMPLES=10 $(PYTEST) -m fast $(PYTEST_ARGS)
	WATTFARE_TEST_EXAMPLES=10 WATTFARE_TEST_KILLS=100 WATTFARE_TEST_STREAMS=500 $(PYTEST) $(LONG) $(PYTEST_ARGS)
	cd tests && ../$(BIN)/python -m mutants
	WATTFARE_TEST_EXAMPLES=0.5 $(TOOLS)/bin/nox --sessions lowest aiohttp other_aiohttp extras

test-mutants: $(VENV)/test ## put faults into a copy of the code; a test must see each
	cd tests && ../$(BIN)/python -m mutants $(MUTANTS)

test-newest: $(TOOLS)/tools ## run all tests with the newest version of everything
	$(TOOLS)/bin/nox --sessions newest

test-libraries: $(TOOLS)/tools ## run real AI libraries against the service; print what each can do
	@rm -rf .nox/results
	@status=0; $(TOOLS)/bin/nox --sessions libraries -- $(LIBRARIES) || status=$$?; \
		(cd tests && ../$(TOOLS)/bin/python -m libraries); exit $$status

test-browsers: $(TOOLS)/tools ## run the pages and the demo in a real Chromium
	CHROMIUM="$(CHROMIUM)" $(TOOLS)/bin/nox --sessions browsers -- $(PYTEST_ARGS)

screenshots: $(TOOLS)/tools ## make the pictures of the pages in docs/img
	CHROMIUM="$(CHROMIUM)" WATTFARE_SCREENSHOTS="$(CURDIR)/docs/img" \
		$(TOOLS)/bin/nox --sessions browsers -- -k picture

fuzz: $(FUZZ)/fuzz ## feed made-up input to the readers, the middleware and the service
	PYTHONPATH=tests $(FUZZ)/bin/python -m fuzz $(if $(FUZZ_SECONDS),--seconds $(FUZZ_SECONDS)) $(FUZZ_ARGS)

lint: $(VENV)/test ## check the code and its types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/test ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/test ## report which lines the tests run; the pages are in htmlcov/
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html $(PYTEST_ARGS)

bench: $(BENCH)/bench ## measure what it costs; write benchmarks/RESULTS.md
	$(BENCH)/bin/python -m benchmarks $(BENCH_ARGS)

clean: ## delete the virtual environments
	rm -rf $(VENV) $(BENCH) $(TOOLS) $(FUZZ) .nox

# Environments. `install.py` installs what the lock names, here and in the sessions of nox.

$(VENV)/demo $(VENV)/test: $(VENV)/%: requirements/%.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python requirements/install.py $*
	@touch $@

# An environment of its own, so that the tests do not run on its event loop.
$(BENCH)/bench: requirements/bench.txt pyproject.toml | $(BENCH)/pyvenv.cfg
	$(BENCH)/bin/python requirements/install.py bench
	@touch $@

$(TOOLS)/tools: requirements/tools.txt pyproject.toml | $(TOOLS)/pyvenv.cfg
	$(TOOLS)/bin/python requirements/install.py tools
	@touch $@

$(FUZZ)/fuzz: requirements/fuzz.txt pyproject.toml | $(FUZZ)/pyvenv.cfg
	$(FUZZ)/bin/python requirements/install.py fuzz
	@touch $@

%/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $*

# Locks. The other sets have the same versions as the tests, but for the libraries on openai 2.

COMPILE = $(TOOLS)/bin/uv pip compile - --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-package wattfare-mw \
	--custom-compile-command "make lock" $(UPGRADE)
LIKE_TEST = --constraints requirements/test.txt
LOWEST = --resolution lowest-direct --upgrade
# The extras in the group `suite`, which is what `lowest` tests.
SUITE = aiohttp,httpx2,django,flask,starlette,fastapi,litestar,openai,service,tokenizer,postgresql,redis,demo,testing

lock: $(TOOLS)/tools ## lock what pyproject.toml asks for; keep the versions that still fit
	@echo "-e ." | $(COMPILE) --group test -o requirements/test.txt >/dev/null
	@echo "-e ." | $(COMPILE) --group demo -o requirements/demo.txt $(LIKE_TEST) >/dev/null
	@echo "-e ." | $(COMPILE) --group bench -o requirements/bench.txt $(LIKE_TEST) >/dev/null
	@echo "-e ." | $(COMPILE) --group tools -o requirements/tools.txt $(LIKE_TEST) >/dev/null
	@echo "-e ." | $(COMPILE) --group fuzz -o requirements/fuzz.txt $(LIKE_TEST) >/dev/null
	@echo "-e ." | $(COMPILE) --group browsers -o requirements/browsers.txt $(LIKE_TEST) >/dev/null
	@echo "-e ." | $(COMPILE) --group libraries -o requirements/libraries.txt $(LIKE_TEST) >/dev/null
	@echo "-e ." | $(COMPILE) --group libraries-openai-2 -o requirements/libraries-openai-2.txt >/dev/null
	@# The lowest versions that pyproject.toml declares, of the project and of the extras in `suite`.
	@echo "-e .[$(SUITE)]" | $(COMPILE) --group suite -o requirements/lowest.txt $(LOWEST) >/dev/null

upgrade: UPGRADE := --upgrade
upgrade: lock ## lock the newest versions
