PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench bench-chunked bench-papers test lint clean test-cuda verify

bench: .venv/installed
	$(BIN)/attnbench run quick

bench-chunked: .venv/installed
	$(BIN)/attnbench run chunked_vs_sdpa

bench-papers: .venv/installed
	$(BIN)/attnbench run papers/rabe_staats_2021
	$(BIN)/attnbench run papers/rabe_staats_2021_memory

test: .venv/installed-test
	$(BIN)/python -m pytest -q

test-cuda: .venv/installed-test
	$(BIN)/python -m pytest -q -m cuda

verify: .venv/installed
	for name in $$($(BIN)/attnbench list --names); do \
	  $(BIN)/attnbench conformance $$name --record results/verification || failed=$$?; \
	done; exit $${failed:-0}

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/installed-dev: .venv/installed-test
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
