# Everything CI runs, and nothing else. `make demo` and `make test` set up what they need.
PYTHON ?= python3.11
VENV := .venv
TRITON_VENV := .venv-triton
BIN := $(VENV)/bin
# Imports of feast and Great Expectations take twice as long without bytecode.
unexport PYTHONDONTWRITEBYTECODE
export GX_ANALYTICS_ENABLED := false
export FEAST_USAGE := False

.PHONY: help setup demo test check goldens results clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.ready $(TRITON_VENV)/.ready ## both environments: the pipelines', and Triton's (numpy 1.26)

# torch first and with pip: uv does not look where a local CPU build may lie.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt uv
	$(BIN)/python -m pip install -q torch==2.13.0
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install -q --compile-bytecode -c constraints.txt -e '.[pipeline]'
	touch $@

$(VENV)/.test-ready: $(VENV)/.ready
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install -q --compile-bytecode -c constraints.txt -e '.[pipeline,spark,test]'
	touch $@

$(TRITON_VENV)/.ready: pyproject.toml constraints-triton.txt $(VENV)/.ready
	$(PYTHON) -m venv $(TRITON_VENV)
	VIRTUAL_ENV=$(CURDIR)/$(TRITON_VENV) $(BIN)/uv pip install -q --compile-bytecode -c constraints-triton.txt -e '.[triton]'
	touch $@

demo: setup ## the whole loop on the simulated market; prints the verdict and the report's path
	$(BIN)/omnifeed run

test: setup $(VENV)/.test-ready ## every test that this machine can run, with what was skipped and why
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(VENV)/.test-ready ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

goldens: setup $(VENV)/.test-ready ## write the compiled pipelines and loss curves that the tests compare with
	$(BIN)/python -m pytest tests/pipelines/test_goldens.py tests/training/test_loop.py --refresh-goldens -q

results: setup ## docs/RESULTS.md from results/*.json
	$(BIN)/python benchmarks/results_page.py

clean: ## environments, state and caches
	rm -rf $(VENV) $(TRITON_VENV) .omnifeed build *.egg-info
