# Two commands do everything on a machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -type f -not -name '*.pyc') pyproject.toml README.md LICENSE
PIP := $(BIN)/pip --disable-pip-version-check -q

.PHONY: demo test test-slow test-all coverage lint types contracts docs bench bench-memory quality quality-page clean

demo: .stamp-demo
	$(BIN)/suffice demo

# One thread per library: on busy cores, threads that wait for each other take several times as long.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# The quick tests: everything that does not start whole processes.
test: .stamp-test
	$(PYTEST) -m "not slow"

# The quick tests under coverage, with a floor per package (pyproject.toml, tool.suffice.coverage).
coverage: .stamp-test
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n auto --dist worksteal -m "not slow"
	$(BIN)/python -m coverage combine -q
	$(BIN)/python scripts/check_coverage.py

test-slow: .stamp-test
	$(PYTEST) -m slow

test-all: .stamp-test
	$(PYTEST)

# One environment for both: the test stamp implies the demo's.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit("suffice needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

.stamp-base: $(VENV)/pyvenv.cfg requirements/base.txt
	$(PIP) install --require-hashes -r requirements/base.txt
	@touch $@

.stamp-dev: .stamp-base requirements/dev.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

# The package is installed from its wheel, as users get it: what is tested is what ships.
.stamp-demo: .stamp-base $(SOURCES)
	rm -rf dist
	$(PIP) wheel --no-deps -w dist .
	$(PIP) install --no-deps --force-reinstall dist/*.whl
	@touch $@

.stamp-test: .stamp-dev .stamp-demo
	@touch $@

lint: .stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .stamp-dev
	$(BIN)/mypy
	$(BIN)/mypy tests/typing examples scripts/measure_structure.py scripts/check_coverage.py

contracts: .stamp-test
	$(BIN)/lint-imports --no-cache

docs: .stamp-test
	$(BIN)/python scripts/build_reference.py

# Compares the gateway with its peers; needs nginx and wrk, installs the peers on first use.
bench: .stamp-test
	$(BIN)/python benchmarks/latency/run.py

bench-memory: .stamp-test
	$(BIN)/python benchmarks/latency/memory.py

# The proof on real tables takes an hour or two. Each runner says with --help what it takes;
# paretobandit, obp and litellm are compared only where their options name them.
QUALITY := benchmarks/quality
RUNNERS := routellm pool certificates robustness online offpolicy pacing drift_detection savings training_cost
DATA ?=

quality: .stamp-test
	@test -d "$(DATA)" || { echo "Give the folder that holds the tables: make quality DATA=folder" >&2; exit 2; }
	set -e; for r in $(RUNNERS); do $(BIN)/python $(QUALITY)/$$r.py --data "$(DATA)" --out $(QUALITY)/results; done
	$(BIN)/python $(QUALITY)/end_to_end/run.py --out $(QUALITY)/results
	$(BIN)/python benchmarks/latency/decision.py --data "$(DATA)"
	$(BIN)/python $(QUALITY)/page.py

quality-page: .stamp-test
	$(BIN)/python $(QUALITY)/page.py

clean:
	rm -rf $(VENV) dist build .stamp-*
