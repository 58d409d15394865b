# make demo: the whole line on a public dataset. make test: the tests. Both set up .venv by themselves.
PYTHON ?= python3
READY := .venv/.ready
UV = $(shell command -v uv || echo .venv/bin/uv)
# Three workers even on two cores: a fifth of the time a test waits, for a process to start or a deadline to pass. Bytecode
# is written even where the environment forbids it, as hundreds of processes import the same modules.
TESTS = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/gpu

.PHONY: help demo test cov lint other-versions format lock build clean

help:
	@grep -E '^# make' Makefile | tr -d '#'; echo "also: make cov | lint | other-versions | format | lock | build | clean"

demo: $(READY)
	.venv/bin/lensmith demo

test: $(READY)
	$(TESTS)
	.venv/bin/python -m pytest tests/gpu

# The tests with branch coverage, child processes included; each package has to reach MIN_COVERAGE per cent.
MIN_COVERAGE = 92
cov: $(READY)
	rm -rf build/coverage && mkdir -p build/coverage
	$(TESTS) --cov --cov-report=
	for package in gateway finetune modelfiles studio; do \
	  .venv/bin/coverage report --include "$$package/*" --fail-under $(MIN_COVERAGE) || exit; \
	done

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# After the linters: CI runs both in turn, beside the tests.
other-versions: lint
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= scripts/test-other-versions

format: $(READY)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

$(READY): pyproject.toml requirements.lock scripts/setup
	PYTHON=$(PYTHON) scripts/setup
	@touch $(READY)

# The tested set for all extras and Python versions, with hashes.
lock:
	$(UV) pip compile --universal --python-version 3.10 --all-extras --group test --group lint --group gguf --generate-hashes --no-header \
	  pyproject.toml -o requirements.lock

# The wheel and the source distribution, in dist/.
build: $(READY)
	$(UV) build --quiet

clean:
	rm -rf .venv build dist runs data
