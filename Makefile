.DEFAULT_GOAL := help
.PHONY: help setup demo demo-gateway run docs test test-interop test-availability test-deployment test-kill test-soak test-all mutants measure bench walk check format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.docs
INTEROP := tests/interop/node_modules
PEERS := tests/bench/peers
PYTHON_PEERS := $(VENV)/peers
PYTEST := $(BIN)/python -m pytest -q
# Two for two CPUs, and one for the journeys, which mostly wait.
WORKERS ?= 3

# Many tests start Python processes, which start faster from compiled files.
unexport PYTHONDONTWRITEBYTECODE

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: $(INSTALLED) ## Create .venv and install the pinned versions

# setuptools builds gunicorn-h1c, which has no wheels for most platforms. The one in a new .venv can be too old for it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
	    || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=python3.12 ..."; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: setup ## Show both servers and an agent at work, step by step; VERBOSE=1 shows the requests
	@$(BIN)/python examples/demo.py

demo-gateway: setup ## Show two MCP servers without OAuth behind the gateway; needs Node.js
	@$(BIN)/python examples/demo_gateway.py

run: setup ## Keep both servers running with a registered client, and print commands to try; Ctrl-C stops them
	@$(BIN)/python examples/demo.py --keep-running

docs: $(DOCS) ## Regenerate docs/reference and build the site in build/docs
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python docs/generate_scale.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@

# One run for all: while a journey waits for a server, the other process runs unit tests (tests/support/scheduling.py).
test: setup ## Run the unit tests and the journeys; COVERAGE=1 also requires every branch of the security core
	$(PYTEST) -n $(WORKERS) --dist load $(if $(COVERAGE),--cov) -m "not availability and not deployment and not interop and not kill and not soak"

# Without npm the clients for Node are not installed, and their tests say so.
test-interop: setup $(if $(shell command -v npm 2> /dev/null),$(INTEROP)/.installed) ## Run MCP clients of other projects and the conformance suite against both servers; most need npm
	$(PYTEST) -rs -n $(WORKERS) --dist loadfile -m interop tests/interop

$(INTEROP)/.installed: tests/interop/package.json tests/interop/package-lock.json tests/interop/.npmrc
	cd tests/interop && npm ci --loglevel=error
	@touch $@

test-all: test test-interop ## Run test and test-interop

test-availability: setup ## Occupy and restart both servers under load, lock their databases, and measure; takes minutes
	$(PYTEST) -s -m availability tests/availability

# What the machine has no program for is skipped by name: nginx, haproxy, redis-server, prometheus,
# systemd-analyze, debootstrap, buildah.
test-deployment: setup ## Run what is in deploy/ with programs of the distribution: commands of docs/deployment.md, nodes, units, images, TLS, Prometheus, Redis
	$(PYTEST) -rs -n 2 --dist loadfile -m deployment tests/deployment

test-kill: setup ## Kill 200 processes while they change keys, secrets or the schema; takes minutes
	$(PYTEST) -s -m kill tests/kill

# A full run that passes is recorded in the documentation.
SHORT_SOAK := $(SOAK_SECONDS)$(SOAK_RATE)
test-soak: setup $(if $(SHORT_SOAK),,$(VENV)/.bench) ## Keep both servers under mixed load, then rotate keys on a fast clock; takes half an hour; SOAK_SECONDS=90 shortens the load
	SOAK_OUTPUT=$(CURDIR)/build/soak.json $(PYTEST) -s -m soak tests/soak
	$(if $(SHORT_SOAK),,mkdir -p docs/performance && cp build/soak.json docs/performance/)
	$(if $(SHORT_SOAK),,PYTHONPATH=examples:tests $(BIN)/python -m bench --document)

mutants: setup ## Break the security core, one line at a time, and check that the tests notice each
	$(BIN)/python tests/mutation/mutants.py

measure: setup ## Measure how long a token stays accepted after a revocation: p50, p99
	PYTHONPATH=examples:tests $(BIN)/python tests/bench/revocation_window.py

# Without npm, the peers for Node are skipped by name. ROWS, ROUNDS and SECONDS narrow and shorten the run.
bench: $(VENV)/.bench $(PYTHON_PEERS)/.installed $(if $(shell command -v npm 2> /dev/null),$(PEERS)/node_modules/.installed) ## Compare the CPU time per request with that of other servers; takes half an hour; ROWS=token-secret,whoami-2026 ROUNDS=3 SECONDS=2
	PYTHONPATH=examples:tests $(BIN)/python -m bench $(if $(ROWS),--rows $(ROWS),--output docs/performance/results.json) \
	    $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

$(VENV)/.bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[bench]'
	@touch $@

$(PYTHON_PEERS)/.installed: $(PEERS)/requirements.txt constraints.txt
	$(PYTHON) -m venv --clear $(PYTHON_PEERS)
	$(PYTHON_PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(PEERS)/requirements.txt
	@touch $@

# better-sqlite3 is compiled with the headers of an installed Node.js, where there are any.
$(PEERS)/node_modules/.installed: $(PEERS)/package.json $(PEERS)/package-lock.json $(PEERS)/.npmrc
	cd $(PEERS) && npm ci --loglevel=error
	cd $(PEERS) && npm rebuild better-sqlite3 --ignore-scripts=false --loglevel=error $(if $(wildcard /usr/include/node/node.h),--nodedir=/usr)
	@touch $@

walk: setup ## Print the functions that one request calls, with their files
	PYTHONPATH=examples:tests $(BIN)/python tests/bench/walk.py

check: setup ## ruff, mypy --strict, import-linter, vocabulary
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/vocabulary.py

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what make created, except databases and keys
	rm -rf $(VENV) $(INTEROP) $(PEERS)/node_modules build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* *.log
