# Everything a contributor runs. `make` alone lists the targets; each sets up .venv when it has to.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test docs lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Create .venv with the package and its tools; the other targets do it by themselves

# The stamp is written last, so an interrupted installation is taken up again.
$(STAMP): pyproject.toml
	@echo "Installing into $(VENV); this takes some minutes, once for each pyproject.toml."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(STAMP) ## Active learning on handwritten digits, on the CPU
	@$(BIN)/python examples/demo.py

test: lint docs ## All that must pass before a change lands: lint, types, documentation, tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

docs: $(STAMP) ## Build the documentation into site/; a warning fails it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(STAMP) ## Style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict lightning_al

format: $(STAMP) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean: ## Remove caches and build outputs; .venv and runs/ stay
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find lightning_al tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
