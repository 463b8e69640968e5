# Every target sets up .venv by itself; nothing is installed outside it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint bench docs clean

demo: $(STAMP)
	$(BIN)/cartridges demo

test: lint
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)
	$(BIN)/python benchmarks/pocket_training.py
	$(BIN)/python benchmarks/training_step.py

docs: $(STAMP)
	$(BIN)/cartridges demo > docs/results/demo.txt
	$(BIN)/cartridges pocket demo > docs/results/pocket_demo.txt
	$(BIN)/python docs/build.py

clean:
	rm -rf .venv dist .pytest_cache .ruff_cache
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
