# Every target is safe to repeat; the first one sets up .venv from the lock (2-3 minutes).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Byte code halves every process start, and Ray starts many.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-all

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib orchestrator workloads search_spaces || true
	touch $(READY)

demo: $(READY)
	$(BIN)/paretoken run demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(READY)
	$(BIN)/python -m pytest -m "not gpu"
