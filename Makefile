# Every target makes .venv itself; a fresh clone needs only python3 (3.11 or later), its venv module, and make.
# The environment has two levels: what running a bundle needs (small, no torch), and on top of it what tests need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.run-ready
TEST_READY := $(VENV)/.test-ready

.DEFAULT_GOAL := help
.PHONY: help demo test check clean

help:  ## Say what the targets do
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

demo: $(RUN_READY)  ## Answer a spoken question with the small bundle in the package; writes demo.wav
	$(BIN)/nearfield demo --out demo.wav

test: $(TEST_READY)  ## Run the tests; ARGS="-k mel" is handed to pytest
	$(BIN)/python -m pytest $(ARGS)

check: $(TEST_READY)  ## Lint, formatting, types, imports between folders, file lengths
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	@long=$$(find . \( -name '.?*' -o -name build \) -prune -o -name '*.py' -print | xargs wc -l | awk '$$2 != "total" && $$1 > 400'); \
	if [ -n "$$long" ]; then echo "files over 400 lines:"; echo "$$long"; exit 1; fi

clean:  ## Remove .venv, caches, build products and what the demo wrote
	rm -rf $(VENV) build dist demo.wav .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

# mypy does not follow editable installs: it finds the package under its name through a link (pyproject.toml, mypy_path).
# torchvision, the reference's picture front end, lies apart: tests/reference.py says why.
$(TEST_READY): $(RUN_READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/torchvision 'torchvision>=0.23,<0.29'
	mkdir -p $(VENV)/types
	ln -sfn ../.. $(VENV)/types/nearfield
	touch $@
