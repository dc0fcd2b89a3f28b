# Every target sets the environment up first; that takes no time once it is done.
# REDRAFTER_BACKEND=cpu|cuda overrides the choice, REDRAFTER_PYTHON names the interpreter to use.
# DEMO holds options of the demonstration.
# VLLM names another version of vLLM, such as 0.33.0, with an environment of its own: .venv-0.33.0.
# TEST_WORKERS is the number of processes that share the test files; each keeps engines of its own (about 3 GiB).

BIN := .venv$(if $(VLLM),-$(VLLM))/bin
TEST_WORKERS ?= 2
MYPY_TARGETS = redrafter_vllm training/redrafter_training benchmarks tools

# What a test starts, or that it is slow: see the markers in pyproject.toml and tests/markers.py.
QUICK := not (engine or server or ray or process or compiles or slow or gpu)
# A file stays in one process, so that its engines are shared.
PYTEST = $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
# Same tokens and same distribution as plain vLLM, and what is used of vLLM is there: what another version may break first.
EXACT := tests/engine/test_differential.py tests/engine/test_identity.py tests/engine/test_scripted_identity.py \
	tests/engine/test_distribution.py tests/integration tests/tools/cpu_support

.PHONY: setup demo docs lint check exact test

setup:
	@python3 tools/setup_env.py $(if $(VLLM),--vllm $(VLLM))

demo: setup
	$(BIN)/python -m benchmarks.demo $(DEMO)

docs: setup
	$(BIN)/python -m tools.site

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(MYPY_TARGETS)

check: lint
	$(PYTEST) -m "$(QUICK)"

test: lint
	$(PYTEST)

exact: setup
	$(PYTEST) $(EXACT)
