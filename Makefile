.DEFAULT_GOAL := help
.PHONY: help setup demo run docs test test-interop test-kill test-soak test-all coverage measure walk check format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.docs
INTEROP := tests/interop/node_modules
UNITS := $(BIN)/python -m pytest -q -n auto -m "not journey and not interop and not kill and not soak"

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## Create .venv and install the pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
	    || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=python3.12 ..."; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: setup ## Show both servers and an agent at work, step by step; VERBOSE=1 shows the requests
	@$(BIN)/python examples/demo.py

run: setup ## Run both servers with a registered client until Ctrl-C
	@$(BIN)/python examples/demo.py --keep-running

docs: $(DOCS) ## Regenerate docs/reference and build the site in build/docs
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@

# Each worker of the journeys starts a stack of its own, with four processes: no more than two at once.
test: setup ## Run the tests: units, then the journeys, both in parallel
	$(UNITS)
	$(BIN)/python -m pytest -q -n 2 -m journey

# Without npm there is nothing to install with; the tests that need Node say so.
test-interop: setup $(if $(shell command -v npm 2> /dev/null),$(INTEROP)/.installed) ## Run MCP clients from elsewhere against both servers; most need npm
	$(BIN)/python -m pytest -q -rs -m interop --durations=20

$(INTEROP)/.installed: tests/interop/package.json tests/interop/package-lock.json tests/interop/.npmrc
	cd tests/interop && npm ci --loglevel=error
	@touch $@

test-all: test test-interop ## Run every test but those of minutes: test-kill, test-soak

test-kill: setup ## Kill 200 processes inside what changes keys, secrets and schema; some minutes
	$(BIN)/python -m pytest -q -s -m kill

test-soak: setup ## Replace keys and secrets under load, ten times as fast as in life; some minutes
	$(BIN)/python -m pytest -q -s -m soak

# Apart from `test`, which has to take less than 8 minutes: tracing takes half as long again.
coverage: setup ## Run the unit tests and fail below 100 % of branches in the security core
	$(UNITS) --cov

measure: setup ## Print how long tokens are accepted after they, their client or their key were revoked: p50, p99
	PYTHONPATH=examples:tests $(BIN)/python tests/bench/revocation_window.py

walk: setup ## Print every function and file of this project that one request passes through
	PYTHONPATH=examples:tests $(BIN)/python tests/bench/walk.py

check: setup ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what setup and the tools made; databases and keys stay
	rm -rf $(VENV) $(INTEROP) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* *.log
