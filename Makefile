# Two commands on a fresh machine: `make demo` and `make test`. Each target makes .venv on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
JOBS ?= 2
TESTS ?= notebooks hooked_vlm tests
PYTEST_ARGS ?=
SEED ?=
BENCH_ARGS ?=
SABOTAGE_ARGS ?=
DEMO ?= runs/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest $(if $(SEED),--hypothesis-seed=$(SEED))
ZOO := blip-shapes llava-shapes
EXECUTE := --nbmake --nbmake-timeout=900

.PHONY: help install demo test test-slow sabotage bench notebooks docs lint format types constraints clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

install: $(STAMP) ## make .venv and install the package in it, versions as pinned

# torch first: it is the largest, and the rest then finds it in place.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# One model after the other: the second one's progress would overwrite the first one's.
demo: $(STAMP) ## NOTICE on both models that ship here, three tasks, image and text; names the reports
	@for model in $(ZOO); do \
		$(BIN)/hooked-vlm notice zoo:$$model --task all --corrupt both --noise --examples 50 --out $(DEMO)/$$model || exit 1; \
	done
	@$(BIN)/hooked-vlm compare $(patsubst %,$(DEMO)/%,$(ZOO)) --out $(DEMO)/compared.html

# The notebooks come first: they are the longest, and the tests fill the time beside them.
test: lint types ## everything that CI checks: lint, types, tests, doctests and the notebooks
	$(PYTEST) -n $(JOBS) --dist worksteal -m "not slow" --doctest-modules $(EXECUTE) $(PYTEST_ARGS) $(TESTS)

test-slow: $(STAMP) ## the tests that take minutes
	$(PYTEST) -n $(JOBS) --dist worksteal -m slow $(PYTEST_ARGS) tests

sabotage: $(STAMP) ## hostile cases: each ends in the right result or in an error that names the culprit
	$(BIN)/python -m tests.sabotage $(SABOTAGE_ARGS)

bench: $(STAMP) ## speed and memory beside Hugging Face and TransformerLens
	$(BIN)/python -m tests.benchmarks.bench_forward $(BENCH_ARGS)
	$(BIN)/python -m tests.benchmarks.bench_sweep $(BENCH_ARGS)
	$(BIN)/python -m tests.benchmarks.bench_attribution
	$(BIN)/python -m tests.benchmarks.bench_overhead
	$(BIN)/python -m tests.benchmarks.bench_plan
	$(BIN)/python -m tests.benchmarks.bench_screening
	$(BIN)/python -m tests.benchmarks.bench_half

notebooks: $(STAMP) ## execute the notebooks
	$(PYTEST) -n $(JOBS) $(EXECUTE) $(PYTEST_ARGS) notebooks

docs: $(STAMP) ## the documentation, searchable and offline, in build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## ruff, mending what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

constraints: ## pin the newest versions that pyproject.toml allows
	rm -rf build/pin
	$(PYTHON) -m venv build/pin
	build/pin/bin/python -m pip install --quiet -e '.[dev]'
	{ sed -n '/^#/p' constraints.txt; build/pin/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+.*//' | LC_ALL=C sort -f; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean: ## remove what was built, .venv included
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
