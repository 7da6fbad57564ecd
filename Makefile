# Each target makes its own virtual environment first, so that on a fresh machine it is the only command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help quickstart test check slow kit lint types clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $(READY)

quickstart: $(READY) ## run the quickstart federation
	$(BIN)/fedge up federations/quickstart.yaml

test: $(READY) ## run the quick tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not kit'

lint: $(READY) ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY) ## mypy, strict on the typed rooms
	$(BIN)/python -m mypy

check: lint types test ## everything that a commit must pass

slow: $(READY) ## the tests that take longer
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

kit: $(READY) ## every method of the catalogue through the conformance kit
	$(BIN)/python -m pytest -m kit -n 2 --dist loadgroup

clean: ## remove what was made here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
