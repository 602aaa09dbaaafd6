# Every target makes what it needs in .venv; a second call installs nothing until pyproject.toml or constraints.txt changes.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
# Every file of the folder is one, but for what they share, and quality, which takes hours.
BENCHMARKS = $(filter-out measure models contestants footprint quality,$(basename $(notdir $(wildcard benchmarks/*.py))))

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/pip install --disable-pip-version-check --constraint constraints.txt
# `slow` tests run where CI=true, which `make check` sets.
MARKS = $(if $(filter true,$(CI)),,-m "not slow")

.DEFAULT_GOAL := help
.PHONY: help demo test lint style types floors check bench clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-8s %s\n' "$$name" "$$text"; done

demo: $(VENV)/base.stamp  ## fine-tune the bundled base model and show it before and after
	$(BIN)/loralab demo

test: $(VENV)/dev.stamp  ## run the tests (ARGS="tests/data -k pack" for some of them)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal --timeout 300 $(MARKS) $(ARGS)

lint: style types floors  ## style, types and the import rules

style: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp
	$(BIN)/mypy

floors: $(VENV)/dev.stamp
	$(BIN)/lint-imports

check: $(VENV)/dev.stamp  ## what CI runs: lint, then every test, the slow ones too
	@$(MAKE) --no-print-directory --keep-going lint; lint=$$?; \
	CI=true $(MAKE) --no-print-directory test || exit $$?; \
	[ $$lint -eq 0 ] || { echo "the tests pass, lint does not: see above the tests"; exit $$lint; }

bench: $(VENV)/dev.stamp  ## measure everything, write docs/performance.md (ARGS=--quick only checks that it runs)
	@failed=; for name in $(BENCHMARKS); do echo "== $$name"; \
		$(BIN)/python benchmarks/$$name.py $(ARGS) || failed="$$failed $$name"; done; \
	$(BIN)/python scripts/performance.py; \
	[ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

clean:  ## remove .venv, the caches and what was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -exec rm -rf {} +

# pip is the last thing that venv makes, so a venv that broke half-way is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "loralab needs Python 3.10 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/base.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/base.stamp
