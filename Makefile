# Everything a checkout needs. `make` alone lists the targets.
# Another interpreter: make install PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install train test check format wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make .venv with dml and all the tests need; instant when nothing changed

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "dml_runner needs Python 3.11 or newer; got $$($(PYTHON) --version 2>&1 | head -n 1); try: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo 'installing into .venv; torch is large, so the first time takes minutes on a slow line'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,wandb,images,huggingface,plots]'
	@touch $@

train: install ## train the quickstart: a small GPT, nothing to download
	$(BIN)/dml train recipes/quickstart.yaml

test: install ## run the tests
	$(BIN)/python -m pytest

check: install ## lint, formatting and types, as CI wants them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## let ruff put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: install ## build dist/dml_runner-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove .venv, caches and dist; runs under outputs/ stay
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
