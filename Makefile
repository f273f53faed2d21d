# Everything from a bare clone: each target makes .venv and installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL := smollm2-135m
CODE := workbench probes saes dashboards tests benchmarks examples

.PHONY: help install model demo test test-all check format bench dashboard docs wheel clean

help:
	@echo "make demo       the whole thread on a real model, and one report (first run installs and fetches it)"
	@echo "make test       the tests (within 12 minutes on 2 cores); make test-all adds the slow ones"
	@echo "make check      ruff, pyright, import contracts        make format     format the code"
	@echo "make dashboard  the dashboard on 127.0.0.1:8050        make bench      all benchmarks -> docs/performance.md"
	@echo "make wheel      build the wheel and try it in an empty environment"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $(STAMP)

install: $(STAMP)

model: install
	$(BIN)/workbench models pull $(MODEL)

demo: model
	$(BIN)/workbench demo

# Two files at a time, each on one core: twice as fast on two cores as one at a time on both. The examples that
# hypothesis draws are the same every time here, and new ones in test-all.
test: model
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=fixed $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: model
	$(BIN)/python -m benchmarks.all

dashboard: model
	$(BIN)/workbench dashboard

wheel: install
	$(BIN)/python -m build --no-isolation --wheel
	tests/wheel_in_empty_environment.sh dist/*.whl

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache
