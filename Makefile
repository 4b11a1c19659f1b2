# Two commands from a clean clone: make quickstart, make test. Both make .venv once and use it again.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= quickstart
BIN    := $(VENV)/bin

.PHONY: help quickstart test lint install clean

help:
	@echo "make quickstart   install, then run the whole idea once; the report's path is printed at the end"
	@echo "make test         install, then linters, type checks, import contracts and the test suite"
	@echo "make lint         the same without the test suite"
	@echo "make clean        remove $(VENV) and $(OUT)"
	@echo "Variables: PYTHON=$(PYTHON) (3.11 or 3.12), VENV=$(VENV), OUT=$(OUT); pip's own (PIP_INDEX_URL ...) pass through"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "janus needs Python 3.11 or 3.12, and $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed

quickstart: $(VENV)/.installed
	$(BIN)/janus quickstart --out $(OUT)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) $(OUT)
