# You need Python 3.11 or newer, make and an internet connection.
# Each target sets up the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := benchmarks/.venv
TOOLS := .venv-tools
FUZZ := .venv-fuzz
# The number of tests that run at a time.
JOBS ?= auto
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
PYTEST_ARGS ?=
# All tests but the long ones, with less random input.
MOST_TESTS = WATTFARE_TEST_EXAMPLES=0.3 $(PYTEST) -m 'not long'
# The slow tests that `make test-long` repeats with more random input and more process crashes.
LONG = tests/service/test_ledger.py tests/service/test_deaths.py tests/service/test_real_prompts.py tests/hostile/test_large_bodies.py tests/hostile/test_stop.py
BENCH_ARGS ?=
# How long `make fuzz` runs, in seconds. Without it, `make fuzz` tries a million inputs.
FUZZ_SECONDS ?=
FUZZ_ARGS ?=
# The AI libraries that `make test-libraries` runs: names, or `all`.
LIBRARIES ?= all
# The faults that `make test-mutants` tries, by name. Without names, it tries all.
MUTANTS ?=
# The Chromium for `make test-browsers`. By default, that of the system, or else one from apt.
CHROMIUM ?=

# Without its cache of compiled modules, Python would compile them for each process of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-fast test-long test-newest test-libraries test-browsers test-mutants screenshots fuzz lint format coverage bench lock upgrade clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo ## run the demo in the terminal
	@$(BIN)/wattfare demo

# The linters and the type checker run beside the tests. Their report comes last.
test: $(VENV)/test ## run the linters, the type checker and all tests but a few long ones
	@report=$$(mktemp); $(MAKE) --no-print-directory lint >$$report 2>&1 & linters=$$!; \
		$(MOST_TESTS) $(PYTEST_ARGS); tests=$$?; \
		wait $$linters; linted=$$?; cat $$report; rm -f $$report; \
		exit $$((tests ? tests : linted))

test-fast: $(VENV)/test ## run the tests that need no server and no database
	WATTFARE_TEST_EXAMPLES=0.2 $(PYTEST) -m fast $(PYTEST_ARGS)

# Half of its time goes to the session `lowest`, which runs what `make test` runs.
test-long: $(VENV)/test $(TOOLS)/tools ## run longer tests, and tests with other versions of the dependencies
	$(PYTEST) -m long $(PYTEST_ARGS)
	WATTFARE_TEST_EXAMPLES=10 $(PYTEST) -m "fast and hypothesis" $(PYTEST_ARGS)
	WATTFARE_TEST_EXAMPLES=10 WATTFARE_TEST_KILLS=100 WATTFARE_TEST_STREAMS=500 $(PYTEST) $(LONG) $(PYTEST_ARGS)
	cd tests && ../$(BIN)/python -m mutants
	WATTFARE_TEST_EXAMPLES=0.3 $(TOOLS)/bin/nox --sessions lowest aiohttp other_aiohttp extras

test-mutants: $(VENV)/test ## remove checks from a copy of the code; each removal must make a test fail
	cd tests && ../$(BIN)/python -m mutants $(MUTANTS)

test-newest: $(TOOLS)/tools ## run all tests with the newest dependencies
	$(TOOLS)/bin/nox --sessions newest

test-libraries: $(TOOLS)/tools ## test real AI libraries against the service
	@rm -rf .nox/results
	@status=0; $(TOOLS)/bin/nox --sessions libraries -- $(LIBRARIES) || status=$$?; \
		(cd tests && ../$(TOOLS)/bin/python -m libraries); exit $$status

test-browsers: $(TOOLS)/tools ## test the pages and the demo in Chromium
	CHROMIUM="$(CHROMIUM)" $(TOOLS)/bin/nox --sessions browsers -- $(PYTEST_ARGS)

screenshots: $(TOOLS)/tools ## take the screenshots in docs/img
	CHROMIUM="$(CHROMIUM)" WATTFARE_SCREENSHOTS="$(CURDIR)/docs/img" \
		$(TOOLS)/bin/nox --sessions browsers -- -k picture

fuzz: $(FUZZ)/fuzz ## send random input to the parsers, the middleware and the service
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

coverage: $(VENV)/test ## report which lines the tests run, in htmlcov/
	$(MOST_TESTS) --cov --cov-report=term:skip-covered --cov-report=html $(PYTEST_ARGS)

bench: $(BENCH)/bench ## measure the middleware and the service; write benchmarks/RESULTS.md
	$(BENCH)/bin/python -m benchmarks $(BENCH_ARGS)

clean: ## delete the virtual environments
	rm -rf $(VENV) $(BENCH) $(TOOLS) $(FUZZ) .nox

# Environments. `install.py` installs a lock file, here and in the sessions of nox.

$(VENV)/demo $(VENV)/test: $(VENV)/%: requirements/%.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python requirements/install.py $*
	@touch $@

# The benchmarks have a separate environment, so that their packages cannot change the tests.
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

# Lock files. They have the versions of requirements/test.txt, except for lowest.txt and
# libraries-openai-2.txt.

COMPILE = $(TOOLS)/bin/uv pip compile - --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-package wattfare-mw \
	--custom-compile-command "make lock" $(UPGRADE)
LIKE_TEST = --constraints requirements/test.txt
LOWEST = --resolution lowest-direct --upgrade
# The extras in the group `suite`, which is what `lowest` tests.
SUITE = aiohttp,httpx2,django,flask,starlette,fastapi,litestar,openai,service,tokenizer,postgresql,redis,demo,testing

lock: $(TOOLS)/tools ## lock the dependencies of pyproject.toml
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
