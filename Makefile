# Two commands do everything on a machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -type f -not -name '*.pyc') pyproject.toml README.md LICENSE
PIP := $(BIN)/pip --disable-pip-version-check -q

.PHONY: demo test lint types contracts docs bench clean

demo: .stamp-demo
	$(BIN)/suffice demo

test: .stamp-test
	$(BIN)/python -m pytest

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

contracts: .stamp-test
	$(BIN)/lint-imports --no-cache

docs: .stamp-test
	$(BIN)/python scripts/build_reference.py

bench: .stamp-test
	$(BIN)/python benchmarks/latency/run.py

clean:
	rm -rf $(VENV) dist build .stamp-*
