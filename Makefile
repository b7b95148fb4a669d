# make demo   compress the bundled model, save it, reload it, compare four variants (a few minutes on 2 cores)
# make test   formatting, lint, types, tests
# make fuzz   the C++ kernels under sanitizers, called at random (SEED and CALLS choose which and how many), then spoilt
#             files, pictures, questions and command lines (CASES of them; docs/reliability has the result of 100,000)
# All make their own .venv first; `make install` does only that.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test lint fuzz clean

install: $(READY)

# torch goes in first and by its exact version: asked for as a range, pip may bring a CUDA build of several GB.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/quota demo --out demo --json demo/demo.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint
	$(BIN)/python -m pytest -q

SEED ?= $(shell date +%s)
CALLS ?= 50000
CASES ?= 20000

fuzz: $(READY)
	mkdir -p build
	$(BIN)/python fuzz/build.py build/fuzz
	build/fuzz $(SEED) $(CALLS)
	$(BIN)/python fuzz/inputs.py --seed $(SEED) --cases $(CASES)

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
