PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench bench-chunked bench-cpu bench-papers test lint clean test-cuda test-emulated test-packages test-processes test-tracking verify verify-emulated

bench: .venv/installed
	$(BIN)/attnbench run quick

bench-chunked: .venv/installed
	$(BIN)/attnbench run chunked_vs_sdpa

bench-cpu: .venv/installed-cpu
	$(BIN)/attnbench run cpu

bench-papers: .venv/installed
	$(BIN)/attnbench run papers/rabe_staats_2021
	$(BIN)/attnbench run papers/rabe_staats_2021_memory

test: .venv/installed-test
	$(BIN)/python -m pytest -q

test-cuda: .venv/installed-test
	$(BIN)/python -m pytest -q -m cuda tests tests/tracking

test-processes: .venv/installed-test
	$(BIN)/python -m pytest -q tests/processes

test-tracking: .venv/installed-test
	$(BIN)/python -m pytest -q tests/tracking

test-packages: .venv/installed-cpu .venv/installed-test
	$(BIN)/python -m pytest -q tests/packages

test-emulated: .venv-emulated/installed
	.venv-emulated/bin/python -m pytest -q tests/emulated

verify: .venv/installed-cpu
	for name in $$($(BIN)/attnbench list --names); do \
	  $(BIN)/attnbench conformance $$name --record results/verification || failed=$$?; \
	done; exit $${failed:-0}

verify-emulated: .venv-emulated/installed
	for name in flash_attn2_emulated xformers_emulated; do \
	  .venv-emulated/bin/attnbench conformance $$name --plugin tests/emulated/adapters.py --record results/verification \
	    || failed=$$?; \
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

.venv/installed-cpu: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

# The GPU packages with their Triton kernels and no compiled ones; Triton's interpreter needs an older numpy.
.venv-emulated/installed: pyproject.toml constraints.txt tests/emulated/requirements.txt
	$(PYTHON) -m venv .venv-emulated
	grep --invert-match '^numpy==' constraints.txt > .venv-emulated/constraints.txt
	.venv-emulated/bin/pip install --quiet --constraint .venv-emulated/constraints.txt \
	  --requirement tests/emulated/requirements.txt --editable '.[test]'
	FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE \
	  .venv-emulated/bin/pip install --quiet --no-deps --no-build-isolation flash-attn==2.8.3
	.venv-emulated/bin/pip install --quiet --no-deps xformers==0.0.35
	touch $@

clean:
	rm -rf .venv .venv-emulated build *.egg-info
