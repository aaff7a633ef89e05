# `make demo` and `make test` do everything on a machine with Python >= 3.11 and make.
# The network is needed by the first install only; a stamp says that it was made.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two processes; the tests of a file share what they compiled.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test

.PHONY: help demo test fast slow mutations smoke notebooks lint types format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       decode real text with Token Recycling (installs first)"
	@echo "make test       the test suite without the slow tests (installs first)"
	@echo "make fast       the tests that take under 2 minutes together"
	@echo "make slow       the slow tests"
	@echo "make mutations  every listed fault is noticed by its test (half an hour)"
	@echo "make smoke      every experiment at its smallest size"
	@echo "make notebooks  every notebook, top to bottom, at smoke size"
	@echo "make lint       formatter and linter;  make types  type checker"

$(BIN)/python:
	@bash tests/make_venv.sh "$(VENV)" "$(PYTHON)"

$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing jtok into $(VENV) (once)"
	@$(PIP) -e ".[experiments]"
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing jtok and its test tools into $(VENV) (once)"
	@$(PIP) -e ".[experiments,notebooks,test]"
	@touch $@ $(DEMO_STAMP)

demo: $(DEMO_STAMP)
	$(BIN)/python -m experiments.run token_recycling

test: $(TEST_STAMP)
	$(PYTEST) -m "not slow and not mutation and not notebook"

fast: $(TEST_STAMP)
	$(PYTEST) -m "not medium and not slow and not mutation and not notebook"

slow: $(TEST_STAMP)
	$(PYTEST) --dist worksteal -m "slow and not notebook"

mutations: $(TEST_STAMP)
	$(PYTEST) --dist worksteal -m mutation

notebooks: $(TEST_STAMP)
	$(PYTEST) -m notebook

smoke: $(TEST_STAMP)
	$(BIN)/python -m experiments.run --all --preset smoke

lint: $(TEST_STAMP)
	@status=0; $(BIN)/ruff format --check . || status=1; \
	$(BIN)/ruff check . || status=1; exit $$status

types: $(TEST_STAMP)
	$(BIN)/mypy

format: $(TEST_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
