# Needs python3 (3.11 or newer) with venv, and make; all else goes into $(VENV).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
SCHEDULES ?= 100000
MINUTES ?= 10
# Tests wait more than they work, so there are more of them at once than cores. JOBS=0: one at a time.
JOBS ?= 4

BIN := $(VENV)/bin
# A file stays in one process: its tests share servers. The order is that of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

# Each test process, and each of the hundreds of processes that tests start, would compile everything anew.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
# Two set-ups at once would be in each other's way.
.NOTPARALLEL:
.PHONY: help demo test test-all lint simulate mutants soak facts bench bench-quick pictures docs clean

help:
	@echo "make demo       a small service with a PostgreSQL of its own; ARGS=... for its options, Ctrl-C ends it"
	@echo "make test       the tests that need nothing but Python; ARGS=... goes to pytest"
	@echo "make test-all   also those that need system packages"
	@echo "make lint       ruff, mypy, pyright, import-linter"
	@echo "make simulate   the gate, and the whole pool in virtual time; SCHEDULES=100000, ARGS=\"--seed 7 --shell-only\""
	@echo "make mutants    the package broken in a hundred ways, one at a time, and what finds each; ARGS=\"--only drain\""
	@echo "make soak       ten minutes of mixed load and random faults, then an audit; MINUTES=30, ARGS=--uvloop"
	@echo "make facts      the figures of the README, measured here, in a minute and a half; ARGS=--json for every run"
	@echo "make bench      beside aiopg by hand, asyncpg, psycopg and others, 20 minutes; needs wrk; ARGS=--help for a part"
	@echo "make bench-quick  three minutes of it, and what has got worse since the figures on record"
	@echo "make docs       the documentation as a site, in build/docs"
	@echo "make pictures   the pictures of the page in docs/images, from real runs; needs Chromium"
	@echo "make clean      delete what these have made"
	@echo "PYTHON=python3.13 chooses another Python; use it with VENV=.venv-3.13"

demo: $(VENV)/.for-demo
	@$(BIN)/python -m aiohttp_poolscope demo $(ARGS)

test: $(VENV)/.for-test
	@$(PYTEST) -m "not system" $(ARGS)
	@echo "Left out: tests marked 'system', which need system packages. 'make test-all' runs them too."

test-all: $(VENV)/.for-test-all
	@$(PYTEST) $(ARGS)

lint: $(VENV)/.for-lint $(VENV)/.for-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

simulate: $(VENV)/.for-test
	@$(BIN)/python -m tests.simulation --schedules $(SCHEDULES) $(ARGS)

mutants: $(VENV)/.for-test
	@$(BIN)/python -m tests.mutants $(ARGS)

soak: $(VENV)/.for-test
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

facts: $(VENV)/.for-demo
	@$(BIN)/python -m benchmarks.by_hand.facts $(ARGS)

bench: $(VENV)/.for-bench
	@$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(VENV)/.for-bench
	@$(BIN)/python -m benchmarks --quick $(ARGS)

pictures: $(VENV)/.for-pictures
	@$(BIN)/python docs/pictures.py $(ARGS)

docs: $(VENV)/.for-docs
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html is the first page."

clean:
	rm -rf .venv .venv-* $(VENV) benchmarks/results build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp a purpose, renewed when pyproject.toml changes: `make demo` needs a third of what the tests need.
$(VENV)/.for-demo: EXTRAS := demo,cli
$(VENV)/.for-test: EXTRAS := test,cli,demo,docs,prometheus,opentelemetry
$(VENV)/.for-test-all: EXTRAS := test,cli,demo,docs,prometheus,opentelemetry,browser
$(VENV)/.for-lint: EXTRAS := lint
$(VENV)/.for-pictures: EXTRAS := bench,browser,demo
$(VENV)/.for-docs: EXTRAS := docs,cli,demo,prometheus,opentelemetry
$(VENV)/.for-bench: EXTRAS := bench,test

$(VENV)/.for-%: pyproject.toml | $(VENV)/.made
	@echo "Setting up $(VENV) for make $* (once, about a minute)..."
	@$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "$(PYTHON) is missing or older than 3.11; choose another with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
