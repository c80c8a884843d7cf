# Two stamps in one environment: `make audit` and `make ui` need only what the program runs on; the others add the
# tools of the workshop (pytest, ruff, mypy, ...). Either is set up again when pyproject.toml or constraints.txt changes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.stamp-runtime
DEV := $(VENV)/.stamp-dev
SUBJECT ?= digits
ARGS ?=
# an environment of their own: what these tools need must not be where the program runs (rfc3987-syntax alone makes every
# import of Great Expectations three seconds longer)
SBOM_VENV ?= .venv-sbom
SBOM_TOOLS := $(SBOM_VENV)/.stamp
SBOM := sbom.cdx.json
export PALIMPSEST_HOME ?= $(CURDIR)/.palimpsest
export DAGSTER_DISABLE_TELEMETRY := 1
# of the tests that show a promise it is recorded how they end; docs/promises.md is made of that
RECORDED := PALIMPSEST_RECORD_PROMISES=docs/promises.json
# pytest ends with 5 when it finds no test of the mark
NONE_IS_FINE := test $$? -eq 5
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help audit test lint ui reproduce bench journeys chaos stat promises browser slow sbom clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

audit: $(RUNTIME) ## set up, then audit SUBJECT (default digits) from data to report
	@$(BIN)/palimpsest audit $(SUBJECT) $(ARGS)

ui: $(RUNTIME) ## the Dagster UI on http://127.0.0.1:3000 (no log-in of its own: see SECURITY.md)
	@DAGSTER_HOME=$(CURDIR) $(BIN)/palimpsest ui $(ARGS)

test: $(DEV) ## set up, then the default tests on all cores (minutes); ARGS are given to pytest
	@$(RECORDED) $(BIN)/python -m pytest -n auto $(ARGS)

journeys: $(DEV) ## whole audits and requests, from the command to the answer (minutes)
	@$(RECORDED) $(BIN)/python -m pytest -n auto -m "journey and not (slow or chaos or stat or gpu or browser)" $(ARGS)

lint: $(DEV) ## format, lint, layers, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

reproduce: $(RUNTIME) ## re-measure the papers' claims; ARGS: short names or numbers of papers, --seed S, --json
	@$(BIN)/palimpsest reproduce $(ARGS)

bench: $(DEV) ## every benchmark: ratios to a plain run or a peer, measured side by side
	@missed=0; for file in benchmarks/[a-z]*.py; do name=$${file##*/}; echo "== $${name%.py}"; \
	  $(BIN)/python -m benchmarks.$${name%.py} $(ARGS) || missed=1; done; exit $$missed

chaos: $(DEV) ## kill processes, fail disks
	@$(RECORDED) $(BIN)/python -m pytest -m chaos $(ARGS) || $(NONE_IS_FINE)

stat: $(DEV) ## simulate the statistical promises
	@$(RECORDED) $(BIN)/python -m pytest -m stat $(ARGS) || $(NONE_IS_FINE)

promises: $(DEV) ## docs/promises.md: every promise, its tests, their last recorded results
	@$(BIN)/python -m tests.promises

browser: $(DEV) ## drive the UI in headless Chromium
	@$(BIN)/python -m pytest -m browser $(ARGS) || $(NONE_IS_FINE)

slow: $(DEV) ## minutes of compute on real data
	@$(RECORDED) $(BIN)/python -m pytest -m slow $(ARGS) || $(NONE_IS_FINE)

sbom: $(RUNTIME) $(SBOM_TOOLS) ## sbom.cdx.json: what is installed (CycloneDX); and what is known against the pinned versions
	@$(SBOM_VENV)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
	  --output-format JSON --output-file $(SBOM) $(BIN)/python
	@echo "$(SBOM): what is installed in $(VENV)"
	@found=$(SBOM_VENV)/audit.md; rm -f $$found; status=0; \
	$(SBOM_VENV)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	  --format markdown --output $$found 2> $(SBOM_VENV)/audit.log || status=$$?; \
	unasked=$$(cat $$found 2>/dev/null | grep -c 'could not be audited' || true); \
	if [ $$status -ne 0 ] && [ ! -s $$found ]; then \
	  echo "whether weaknesses are known could not be asked: see $(SBOM_VENV)/audit.log"; exit 1; \
	elif [ $$status -ne 0 ]; then cat $$found; echo "weaknesses are known of versions in constraints.txt"; exit 1; \
	elif [ $$unasked -ne 0 ]; then \
	  echo "whether weaknesses are known could not be asked of $$unasked versions: see $$found"; exit 1; \
	else echo "no weakness is known of the versions in constraints.txt"; fi

clean: ## remove the environments and the tools' caches; the state in .palimpsest stays
	rm -rf $(VENV) $(SBOM_VENV) $(SBOM) .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache *.egg-info

$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Palimpsest needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once; some minutes on a first download)"
	@$(PIP) -e .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "adding the development tools to $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@

$(SBOM_TOOLS): Makefile
	@$(PYTHON) -m venv --clear $(SBOM_VENV)
	@$(SBOM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7,<8' 'pip-audit>=2.9,<3'
	@touch $@
