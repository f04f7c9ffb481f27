# The two ways in: `make demo` for a first look, `make test` for a change. Needs Python 3.11 or newer, nothing else.
#
#   make demo        install, then run the demo: offline, CPU, minutes
#   make test        install with the development tools, then run the tests; `make -j3 test` runs three of its six parts at once
#   make test-slow   the tests that take minutes
#   make lint        style, format, layout of the docs' prose, types of what ships
#   make docs        the pages as a site in build/site, offline; a warning is an error
#   make clean       remove what builds and tests leave; keeps the environment
#   make commands    write docs/commands.md again, from docs/commands.toml and --help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A stamp is named after the content of pyproject.toml: an install is repeated when that changes, and only then.
# Both installs are editable, so the environment always runs the checkout as it is.
KEY := $(shell cksum < pyproject.toml | cut -d ' ' -f 1)
APP := $(VENV)/.installed-app-$(KEY)
DEV := $(VENV)/.installed-dev-$(KEY)

.PHONY: demo test test-units test-early-stages test-late-stages test-train test-faults test-teach test-slow lint types docs install install-dev clean

demo: install
	$(BIN)/teachonce demo

# Six parts that share nothing, so that they can run side by side, the longest first: three at once keep two cores busy,
# since tests wait for disks, processes and threads half of their time. A new folder of tests is in the first, a new
# stage in the second or third.
test: test-units test-early-stages test-late-stages test-train test-faults test-teach

EARLY := $(wildcard tests/stages/test_[a-l]*.py)
TRAIN := $(wildcard tests/stages/test_train*.py)
TEACH := $(filter-out $(TRAIN),$(wildcard tests/stages/test_t*.py))
LATE := $(filter-out $(EARLY) $(TRAIN) $(TEACH),$(wildcard tests/stages/test_*.py))

test-units: install-dev
	$(BIN)/python -m pytest --ignore tests/stages --ignore tests/faults --ignore tests/cli

test-early-stages: install-dev
	$(BIN)/python -m pytest $(EARLY)

test-late-stages: install-dev
	$(BIN)/python -m pytest $(LATE)

test-train: install-dev
	$(BIN)/python -m pytest $(TRAIN)

test-faults: install-dev
	$(BIN)/python -m pytest tests/faults tests/cli

test-teach: install-dev
	$(BIN)/python -m pytest $(TEACH)

# The tests that take minutes. Without a network the audit of versions is not installed, and its test says so and skips.
test-slow: install-dev
	-$(PIP) install --quiet --editable '.[audit]'
	$(BIN)/python -m pytest -m slow

lint: install-dev
	$(BIN)/python docs/check_prose.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# Types are checked on an installed copy: mypy does not follow an editable install whose folders are renamed.
# build/lib goes first: setuptools would ship a module from it that the tree no longer has.
types: install-dev
	rm -rf build/lib build/bdist.* build/types
	$(PIP) install --quiet --no-deps --no-build-isolation --target build/types .
	MYPYPATH=build/types $(BIN)/mypy --strict --cache-dir $(VENV)/.mypy_cache -p teachonce

# MkDocs fetches nothing, and neither does a reader's browser (a test looks). With --quiet it would not count warnings.
docs: install-dev
	$(BIN)/python -m mkdocs build --strict
.PHONY: commands
commands: install
	$(BIN)/python docs/make_commands.py

# The list that `teachonce models` prints, and its page: minutes, for every architecture is built. It needs no network.
.PHONY: models
models: install-dev
	$(BIN)/python docs/make_models.py --survey

# The development environment holds all that the demo needs.
install: $(if $(wildcard $(DEV)),,$(APP))
install-dev: $(DEV)

$(APP): | $(BIN)/python
	rm -f $(VENV)/.installed-*
	$(PIP) install --editable .
	touch $@

$(DEV): | $(BIN)/python
	rm -f $(VENV)/.installed-*
	$(PIP) install --editable '.[dev]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "TeachOnce needs Python 3.11 or newer; say which one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 6; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pipeline stages cli data_manifests configs tests -name __pycache__ -type d -prune -exec rm -rf {} +
