# make demo    fetch the default model and compare strategies on real questions (about 5 minutes on 2 cores)
# make test    all tests, on the CPU
# make check   format, lint, types, house rules (under 30 seconds)
# make bench   benchmarks, peers measured in the same run (ARGS=--quick: 3 minutes)
# make docs    write the generated documents; make docs-check fails when one is stale
# make clean   remove everything that these commands made
#
# Needs Python 3.11 or newer, pip and make. PYTHON names another interpreter, VENV another place for the environment,
# WORKERS the number of test processes.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
SETUP := PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup

.PHONY: demo test check bench docs docs-check lock clean

demo:
	@$(SETUP) requirements.lock
	@echo "== demo: the default model answers real questions under one budget"
	@$(BIN)/ponder demo

test:
	@$(SETUP) requirements.lock
	@echo "== test: $(WORKERS) processes"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check:
	@$(SETUP) requirements.lock
	@BIN="$(BIN)" sh scripts/check

bench:
	@$(SETUP) requirements.lock
	@BIN="$(BIN)" sh scripts/bench $(ARGS)

docs:
	@$(SETUP) requirements.lock
	@$(BIN)/python scripts/gen_catalogue.py
	@$(BIN)/python scripts/gen_features.py
	@$(BIN)/python scripts/gen_cache.py
	@$(BIN)/python scripts/gen_pairs.py

docs-check:
	@$(SETUP) requirements.lock
	@echo "== docs: generated documents are current"
	@$(BIN)/python scripts/gen_catalogue.py --check
	@$(BIN)/python scripts/gen_features.py --check
	@$(BIN)/python scripts/gen_cache.py --check
	@$(BIN)/python scripts/gen_pairs.py --check

lock:
	@PYTHON="$(PYTHON)" sh scripts/lock

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
