# Every target builds the environment that it needs on its first run and reuses it afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The layers, and what is done with them in training, run on every backend of Keras.
ON_EVERY_BACKEND := tests/layers tests/training tests/test_other_backends.py

.PHONY: demo test test-backends test-jax test-torch check bench clean

demo: $(INSTALLED)
	$(BIN)/keras-bn demo

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-backends: test-jax test-torch

test-jax test-torch: test-%: .venv-%/.installed
	KERAS_BACKEND=$* .venv-$*/bin/python -m pytest -n 2 --dist worksteal $(ON_EVERY_BACKEND)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m tools.benchmarks

clean:
	rm -rf $(VENV) .venv-jax .venv-torch build *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(call install,$(VENV),dev)

.venv-%/.installed: setup.cfg pyproject.toml constraints.txt
	$(call install,.venv-$*,dev$(comma)$*)

comma := ,
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(1)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(2)]'
	touch $(1)/.installed
endef
