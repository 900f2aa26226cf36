# Two commands do everything on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
PACKAGES := simulator hwprofiles calibrate engine app

.PHONY: demo test lint types browser unit clean gpu gpu-bench gpu-calibrate gpu-validate

demo: $(VENV)/.run
	$(BIN)/sim run examples/chat-2k.jsonl --model llama-3.1-8b --gpu h100 --goodput ttft:2000 --goodput tpot:100 --out runs/demo
	@echo "open runs/demo/report.html, or runs/demo/timeline.json in https://ui.perfetto.dev"

# Types beside the browser's tests, which wait for a browser most of the time; the rest takes both cores.
test: lint
	+$(MAKE) --no-print-directory --jobs 2 --output-sync types browser
	+$(MAKE) --no-print-directory unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# In a process of their own: Playwright keeps an event loop running in it.
browser: $(VENV)/.test
	tests/browser/chromium.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

# By file: what the tests of a file share is made once.
unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/browser

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[engine,app,cluster,dev]'
	touch $(VENV)/.run $@

# On a GPU, by plain python3 with numpy and torch; elsewhere each says why not and succeeds.
GPU_MODEL ?= llama-3.1-8b
GPU_OUT ?= runs/gpu
GPU_SYSTEMS ?= vllm
GPU_LIMITS := --max-num-seqs 256 --max-num-batched-tokens 2048 --max-model-len 8192
HAVE_GPU = $(PYTHON) -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null
NO_GPU = { echo "$@: skipped: $(PYTHON) has no torch that finds a GPU"; exit 0; }

gpu:
	@$(HAVE_GPU) || $(NO_GPU); $(PYTHON) tests/gpu/run.py

# Both write what they have as they go; together they stay under nine minutes.
gpu-bench:
	@$(HAVE_GPU) || $(NO_GPU); mkdir -p $(GPU_OUT); \
		timeout 240 $(PYTHON) -m engine.bench_kernels --budget 0.1 --json $(GPU_OUT)/kernels.json; \
		timeout 280 $(PYTHON) -m engine.bench_throughput --model $(GPU_MODEL) --num-prompts 300 --budget 8 \
			--json $(GPU_OUT)/throughput.json

gpu-calibrate:
	@$(HAVE_GPU) || $(NO_GPU); timeout 535 $(PYTHON) -m calibrate measure --device cuda --model $(GPU_MODEL) --budget 8m \
		--out $(GPU_OUT)/raw $(GPU_LIMITS)
	@$(HAVE_GPU) || exit 0; echo "fit anywhere: sim calibrate fit $(GPU_OUT)/raw --out $(GPU_OUT)/profile.yaml"

gpu-validate:
	@$(HAVE_GPU) || $(NO_GPU); timeout 530 $(PYTHON) -m calibrate loads --device cuda --model $(GPU_MODEL) \
		--system $(GPU_SYSTEMS) --loads 0.5,0.8,0.95 --trace examples/chat-2k.jsonl --budget 8m \
		--out $(GPU_OUT)/loads $(GPU_LIMITS)
	@$(HAVE_GPU) || exit 0; echo "compare: sim calibrate validate PROFILE --recorded $(GPU_OUT)/loads"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
