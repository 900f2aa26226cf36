# Two commands do everything on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
PACKAGES := simulator hwprofiles calibrate engine app

.PHONY: demo test lint types unit clean gpu gpu-bench gpu-calibrate gpu-validate

demo: $(VENV)/.run
	$(BIN)/sim run examples/chat-2k.jsonl --model llama-3.1-8b --gpu h100 --goodput ttft:2000 --goodput tpot:100 --out runs/demo
	@echo "open runs/demo/report.html, or runs/demo/timeline.json in https://ui.perfetto.dev"

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

unit: $(VENV)/.test
	tests/browser/chromium.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

$(VENV)/.run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[engine,app,cluster,dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
