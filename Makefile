# make demo: the whole line on a public dataset. make test: the tests. Both set up .venv by themselves.
PYTHON ?= python3
READY := .venv/.ready

.PHONY: help demo test lint format lock clean

help:
	@grep -E '^# make' Makefile | tr -d '#'; echo "also: make lint | format | lock | clean"

demo: $(READY)
	.venv/bin/lensmith demo

test: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/gpu
	.venv/bin/python -m pytest tests/gpu

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: $(READY)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

$(READY): pyproject.toml requirements.lock scripts/setup
	PYTHON=$(PYTHON) scripts/setup
	@touch $(READY)

# The tested set for all extras and Python versions, with hashes.
lock:
	uv pip compile --universal --python-version 3.10 --all-extras --group test --group lint --group gguf --generate-hashes --no-header \
	  pyproject.toml -o requirements.lock

clean:
	rm -rf .venv runs data
