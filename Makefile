# Every target makes .venv itself; a fresh clone needs only python3 (3.11 or later), its venv module, and make.
# The environment has two levels: what running a bundle needs (small, no torch), and on top of it what tests need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.run-ready
TEST_READY := $(VENV)/.test-ready

.DEFAULT_GOAL := help
.PHONY: help demo bench test nano nano-eval check clean

help:  ## Say what the targets do
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 8

demo: $(RUN_READY)  ## Hold a spoken conversation with the tiny model in the package; replies go to demo-replies
	$(BIN)/nearfield demo

bench: $(RUN_READY)  ## Measure how soon a conversation answers; BUNDLES="nano a-bundle", exit 1 on a miss
	$(BIN)/python -m nearfield.apps.bench $(BUNDLES)

test: $(TEST_READY)  ## Run the tests; ARGS="-k mel" is handed to pytest
	$(BIN)/python -m pytest $(ARGS)

nano: $(TEST_READY)  ## Train the small model from scratch, its card and its bundle; hours, resumable
	$(BIN)/python -m nearfield.nano

nano-eval: $(TEST_READY)  ## Judge the small model in the package on held-out data; exit 1 on a miss
	$(BIN)/python -m nearfield.nano evaluate

check: $(TEST_READY)  ## Lint, formatting, types, imports between folders, file lengths
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	@long=$$(find . \( -name '.?*' -o -name build \) -prune -o -name '*.py' -print | xargs wc -l | awk '$$2 != "total" && $$1 > 400'); \
	if [ -n "$$long" ]; then echo "files over 400 lines:"; echo "$$long"; exit 1; fi

clean:  ## Remove .venv, caches, build products and what the demo wrote
	rm -rf $(VENV) build dist demo-replies .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[voice]'
	touch $@

# mypy does not follow editable installs: it finds the package under its name through a link (pyproject.toml, mypy_path).
# torchvision, the reference's picture front end, lies apart: tests/reference.py says why.
$(TEST_READY): $(RUN_READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/torchvision 'torchvision>=0.23,<0.29'
	mkdir -p $(VENV)/types
	ln -sfn ../.. $(VENV)/types/nearfield
	touch $@
