# All commands run in .venv, which the first one makes; `make PYTHON=...` chooses its Python.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
# Where the demo's data/, runs/ and cache/ appear.
MHIMDIST_HOME ?= $(CURDIR)

# How many processes share the tests, and further options of pytest: `make test JOBS=4 PYTEST=--durations=20`.
JOBS ?= 2
PYTEST ?=
# Options of the check on a GPU: `make gpu-check GPU_CHECK='--budget 900'`.
GPU_CHECK ?=
# Where `make sbom` writes.
SBOM ?= sbom.json
# Options of the soak: `make soak SOAK='--minutes 60 --seed 1'`.
SOAK ?= --minutes 60

# Where it is set, as in many images, each of the hundreds of processes of the tests would compile all modules.
unexport PYTHONDONTWRITEBYTECODE

SHARED := -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(PYTEST)

.PHONY: help venv demo test test-long test-all test-isa test-faults soak fuzz site sbom dist test-wheel gpu-check lint clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: .venv/installed  ## make the environment, .venv, with the versions in constraints.txt

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'error: found no Python 3.11 or later; name one with make PYTHON=...'; exit 1; } >&2
	@echo "Installing into .venv (once, about 2.5 GB) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --root-user-action=ignore \
		--constraint constraints.txt --editable '.[dev,bench,slides,docs]'
	@touch $@

demo: export MHIMDIST_HOME := $(abspath $(MHIMDIST_HOME))
demo: venv  ## run a sweep on real handwritten digits with a local Ray cluster; the last line is JSON
	@$(BIN)/python -m data_prep.digits digits-c16
	@$(BIN)/python -m mhimdist.cluster.local -- \
		ray job submit --log-color false --working-dir . -- python jobs/tune_c16.py --name demo --fresh
	@cat "$$MHIMDIST_HOME/runs/demo/result.json"

test: export OMP_NUM_THREADS := 1
test: venv  ## run the tests except the long and the slow ones, in two processes
	@$(BIN)/python -m pytest $(SHARED)

test-long: export OMP_NUM_THREADS := 1
test-long: venv  ## run the long tests, which `make test` leaves out
	@$(BIN)/python -m pytest -m 'long and not slow and not gpu' $(SHARED)

test-all: venv test-isa  ## run all tests; those for a GPU are skipped if there is none
	@$(BIN)/python -m pytest -m '' $(PYTEST)

test-isa: export OMP_NUM_THREADS := 1
test-isa: venv  ## run the numeric tests with fewer instructions than this CPU has
	@$(BIN)/python tests/capped.py $(BIN)/python -m pytest -m 'numeric and not slow and not gpu' $(SHARED)

test-faults: export OMP_NUM_THREADS := 1
test-faults: venv  ## inject every fault of docs/faults.md; prints what held and writes faults.json
	@$(BIN)/python -m pytest -m 'faults and not fuzz and not gpu' --faults=faults.json $(SHARED)

fuzz: export OMP_NUM_THREADS := 1
fuzz: venv  ## give every reader 10,000 forged files
	@$(BIN)/python -m pytest -m fuzz $(SHARED)

soak: venv  ## train and search under random kills, stops and full disks; writes soak.json
	@$(BIN)/python tests/soak.py $(SOAK)

site: venv  ## make the documentation's site in build/site, offline; warnings are errors
	@$(BIN)/python -m sphinx -c docs -b html -n -W --keep-going -q -d build/site-cache . build/site
	@echo "site: build/site/index.html"

sbom: venv  ## list what is installed in sbom.json (CycloneDX)
	@# An environment of its own: with what it brings, every process of Ray would start a second later.
	@$(PYTHON) -m venv build/sbom
	@build/sbom/bin/python -m pip --disable-pip-version-check install -qq --root-user-action=ignore \
		--constraint constraints.txt cyclonedx-bom
	@build/sbom/bin/python -m cyclonedx_py environment --output-reproducible --of JSON -o $(SBOM) $(BIN)/python

dist: venv  ## build the wheel and the sdist in dist/, without a network
	@$(BIN)/python -m build --no-isolation

test-wheel: venv  ## build both, install the wheel into an empty environment, and run what it holds
	@$(BIN)/python -m pytest -m '' tests/test_wheel.py $(PYTEST)

gpu-check: venv  ## check and measure this machine's GPU in less than 6 minutes; writes gpu_check_out/
	@$(BIN)/python benchmarks/gpu_check/run.py $(GPU_CHECK)

lint: venv  ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

clean:  ## remove the environment and all caches, but no data and no runs
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +
