# make demo   the whole path on generated data        make test    all tests
# make check  lint, format, types, import contract    make fix     what the linter can mend by itself
# make bench  the benchmarks                          make docs-check   run what the docs say
# make fuzz   damage 120,000 inputs at random: 20,000 in each of six ways, FUZZ_CASES=… for more
# make install  make .venv and install into it; then . .venv/bin/activate puts ray-mm on the path
#
# TEST_PROCESSES=4 runs so many files of tests at once (2 unless said; each has a Ray of its own).
# PYTHON=python3.12 chooses the Python that .venv is made with; PIP_ARGS is passed on to pip.

PYTHON ?= python3
PIP_ARGS ?=
FUZZ_CASES ?= 20000
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench docs-check fuzz install

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(INSTALLED)
	@echo "ray_mm: running the demo"
	@$(BIN)/ray-mm demo
	@echo "ray_mm: to go on with ray-mm in this shell: . $(BIN)/activate"

test: $(INSTALLED)
	@echo "ray_mm: running all tests, $(TEST_PROCESSES) files at a time"
	@$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=25

check: $(INSTALLED)
	@echo "ray_mm: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "ray_mm: mypy"
	@$(BIN)/mypy
	@echo "ray_mm: import contract"
	@$(BIN)/lint-imports

fix: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(INSTALLED)
	@for script in benchmarks/*.py; do \
	  [ -e "$$script" ] || { echo "ray_mm: benchmarks/ holds no script"; exit 0; }; \
	  echo "ray_mm: $$script"; $(BIN)/python "$$script" || exit 1; \
	done

docs-check: $(INSTALLED)
	@echo "ray_mm: running what the docs say"
	@$(BIN)/python -m pytest -q tests/test_docs.py

fuzz: $(INSTALLED)
	@echo "ray_mm: damaging $(FUZZ_CASES) tars, gzip files in three ways, files that are none, and members"
	@RAY_MM_FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest -q -m fuzz -o faulthandler_timeout=0

install: $(INSTALLED)

# The tested versions are those for Python 3.11 and later; several of them are not made for 3.10 any more.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 14) or sys.exit("ray_mm: $(PYTHON) is %d.%d; Python 3.10 to 3.13 is needed: make PYTHON=python3.12" % v)'
	@test -x $(BIN)/python || { echo "ray_mm: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "ray_mm: installing into $(VENV): some minutes and 3 GB, this once"
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  $(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'; \
	else \
	  echo "ray_mm: Python 3.10: without constraints.txt, which is for 3.11 and later"; \
	  $(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[dev]'; \
	fi
	@touch $@
	@echo "ray_mm: installed; to put ray-mm on the path: . $(BIN)/activate"
