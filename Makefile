# Every target sets the environment up first; that takes no time once it is done.
# REDRAFTER_BACKEND=cpu|cuda overrides the choice, REDRAFTER_PYTHON names the interpreter to use.

BIN := .venv/bin
MYPY_TARGETS = $(wildcard redrafter_vllm training benchmarks cpu_support/redrafter_cpu tools)

.PHONY: setup demo test lint

setup:
	@python3 tools/setup_env.py

demo: setup
	$(BIN)/python -m benchmarks.demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(MYPY_TARGETS)

test: lint
	$(BIN)/python -m pytest
