# Everything a contributor runs. `make` alone lists the targets; each sets up .venv when it has to.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A stamp is written last, so an interrupted installation is taken up again.
DEMO_STAMP := $(VENV)/.installed-for-demo
TEST_STAMP := $(VENV)/.installed-for-test
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

.PHONY: help demo test test-all check docs lint format setup-demo setup-test clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO_STAMP) ## Active learning on handwritten digits, on the CPU
	@$(BIN)/python examples/demo.py

test: check ## All that must pass before a change lands: lint, types, documentation, tests
	$(PYTEST) -m "not sweep"

test-all: check ## The same with the slow sweeps over all strategies, examples, pages and architectures
	$(PYTEST)

check: $(TEST_STAMP)
	@$(MAKE) --no-print-directory --jobs=2 lint docs  # each keeps one core busy

docs: $(TEST_STAMP) ## Build the documentation into site/; a warning fails it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(TEST_STAMP) ## Style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict lightning_al

format: $(TEST_STAMP) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

setup-demo: $(DEMO_STAMP) ## Create .venv with the package and what the demo needs; `make demo` does it by itself

setup-test: $(TEST_STAMP) ## Add the tools, and the packages that tests and documentation need; `make test` does it by itself

$(DEMO_STAMP): pyproject.toml
	@echo "Installing the package and what its demo needs into $(VENV)."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e ".[examples]"
	@touch $@

# It installs all that the demo needs, too.
$(TEST_STAMP): pyproject.toml
	@echo "Installing the package and its tools into $(VENV); this takes some minutes, once for each pyproject.toml."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e ".[dev]"
	@touch $(DEMO_STAMP) $@

clean: ## Remove caches and build outputs; .venv and runs/ stay
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find lightning_al tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
