# make demo    transcribe real recordings with the model of this checkout
# make test    the quick tests
# make check   format, lint, types
# All of them first make .venv from requirements.lock, once.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test test-slow check format clean

help:
	@sed -n 's/^# //p' Makefile | head -4

install: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c "import torch" || { echo "torch $$(sed -n 's/^torch==//p' requirements.lock) \
	came from an index as a CUDA build, which this lock does not complete; point pip at an index or a folder \
	of CPU builds (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), remove .venv and run make again." >&2; exit 1; }
	@touch $@

demo: install
	@$(BIN)/python examples/demo.py

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
