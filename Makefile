# make run: chat with a small model · make test · make check · make bench · make bench-tui · make bench-convert · make accept
#
#   PYTHON=python3.12   the interpreter that makes .venv
#   BACKEND=cuda        cuda, metal, rocm, vulkan, cpu; or auto to look at the machine again
#   ARGS="..."          more arguments for localllama run, or for pytest in make test

PYTHON ?= python3
MODEL ?= smollm2:135m
SETUP = $(PYTHON) scripts/setup.py $(if $(BACKEND),--backend $(BACKEND))
BIN = .venv/bin

.PHONY: setup dev run test check bench bench-tui bench-convert screenshots accept clean

setup:
	@$(SETUP) --no-dev

dev:
	@$(SETUP)

# Without a terminal there is nobody to chat with: answer one prompt and end.
run: setup
	@if [ -t 0 ]; then $(BIN)/localllama run --yes $(MODEL) $(ARGS); \
	else $(BIN)/localllama run --yes $(MODEL) "Say hello in one sentence." $(ARGS) </dev/null; fi

# Most tests keep one core busy.
test: dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m localllama.cli.reference --check docs/cli.md

bench: dev
	$(BIN)/python scripts/bench.py $(ARGS)
	$(BIN)/python scripts/bench_server.py

bench-convert: dev
	$(BIN)/python scripts/bench_convert.py $(ARGS)

bench-tui: dev
	$(BIN)/python scripts/bench_tui.py $(ARGS)

# Also the words that tests/test_tui_snapshots.py looks for.
screenshots: dev
	PYTHONPATH=. $(BIN)/python scripts/screenshots.py

accept: dev
	$(BIN)/python -m pytest -m accept --timeout 3600 -rP $(ARGS)

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
