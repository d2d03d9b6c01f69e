# make demo: the main job on the embedded data set.   make test: every check and test.
PYTHON ?= python3
# Test files side by side, each file in one process; every process uses one thread.
PARALLEL ?= --numprocesses auto --maxprocesses 8 --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: demo test quick long check format clean

demo: $(VENV)/installed
	$(BIN)/sparsedet demo --output $(RUN)

test: check
	$(BIN)/pytest $(PARALLEL) -m "not long"

quick: $(VENV)/installed
	$(BIN)/pytest $(PARALLEL) -m "not slow and not long"

long: $(VENV)/installed
	$(BIN)/pytest -m long

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A virtual environment of this folder, made anew whenever the dependencies change.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
