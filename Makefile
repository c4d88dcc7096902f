# make install | demo | test | check ; docs/ has the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without --no-compile pip compiles thousands of modules that nothing here imports (as uv does not).
PIP_INSTALL := pip install --quiet --disable-pip-version-check --no-compile
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install install-hf demo test test-slow test-hf check docs lint types clean bench-aa bench-checkpointing bench-memory bench-packing bench-packing-quality bench-need-less bench-real-size bench-resume bench-store bench-wall torture fuzz imported-runs bench-train bench-pool

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## .venv with everything the demo and the checks need, and the demo model

$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  echo "installing with uv into $(VENV)"; \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python -e '.[demo,dev]'; \
	else \
	  echo "installing with pip into $(VENV)"; \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m $(PIP_INSTALL) -e '.[demo,dev]'; \
	fi
	$(BIN)/oodatcaa models fetch demo
	@touch $(STAMP)

demo: $(STAMP) ## the whole crew fine-tunes a real model in a fresh project folder
	$(BIN)/oodatcaa demo

# One more than CI's cores: many tests wait for processes of their own.
test: $(STAMP) ## pytest, without the tests marked slow
	$(BIN)/python -m pytest -n 3 --dist worksteal -m 'not slow'

HF := .venv-hf
HF_STAMP := $(HF)/.installed

install-hf: $(HF_STAMP) ## .venv-hf, where the backends on PyTorch and the trackers are tested

$(HF_STAMP): pyproject.toml
	$(PYTHON) -m venv $(HF)
	$(HF)/bin/python -m $(PIP_INSTALL) -e '.[demo,hf,tracking]' \
	  'pytest>=8.3' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6'
	$(HF)/bin/python -m $(PIP_INSTALL) --no-deps 'axolotl==0.19.0'
	@touch $(HF_STAMP)

test-hf: $(HF_STAMP) ## the backends hf and axolotl, and trackers, in an environment of its own (CPU build of torch)
	$(HF)/bin/python -m pytest -q -n 2 --dist loadfile -m 'not slow' tests/hf \
	  tests/training/test_tracking.py \
	  tests/training/test_axolotl.py::test_axolotls_own_schema_takes_it

test-slow: $(STAMP) $(HF_STAMP) ## the tests marked slow, in both environments
	$(BIN)/python -m pytest -n 3 --dist worksteal -m slow
	$(HF)/bin/python -m pytest -q -n 2 --dist loadfile -m slow tests/hf

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

check: lint types test ## ruff, mypy --strict and pytest; CI runs this and test-hf

bench-memory: $(STAMP) ## forecast against measured peak over a grid of random models, into docs/benchmarks.md
	$(BIN)/python benchmarks/memory.py --write

bench-checkpointing: $(STAMP) ## peak and step time by how many blocks are computed again, into docs/benchmarks.md
	$(BIN)/python benchmarks/checkpointing.py --write

bench-need-less: $(STAMP) ## peak and speed at a large vocabulary beside stock mlx_lm.lora, into docs/benchmarks.md
	$(BIN)/python benchmarks/need_less.py --write

bench-packing: $(STAMP) ## training with packed rows against padded batches, into docs/benchmarks.md
	$(BIN)/python benchmarks/packing.py --write

bench-packing-quality: $(STAMP) ## the demo's test loss after packed and after padded training, into docs/benchmarks.md
	$(BIN)/python benchmarks/packing_quality.py --write

bench-real-size: $(STAMP) ## a random 7B model: forecast, probe and a training step, into docs/benchmarks.md
	$(BIN)/python benchmarks/real_size.py --length 2048 --write

bench-aa: $(STAMP) ## does the A/B verdict call a configuration better than itself, into docs/benchmarks.md
	$(BIN)/python benchmarks/bench_aa.py --write

bench-train: $(STAMP) $(HF_STAMP) ## training speed and memory beside PEFT and stock mlx_lm, into docs/benchmarks.md
	$(BIN)/python benchmarks/bench_train.py --write

bench-pool: $(STAMP) ## the model pool: memory of 8 adapters, equal answers, speed beside mlx_lm.server
	$(BIN)/python benchmarks/bench_pool.py --write

KILLS ?= 20
bench-resume: $(STAMP) ## kill -9 at random moments, resume, compare the bits, into docs/benchmarks.md (KILLS=)
	$(BIN)/python benchmarks/bench_resume.py --kills $(KILLS) --write

bench-store: $(STAMP) ## the queue beside filelock + json and SQLite, into docs/benchmarks.md
	$(BIN)/python benchmarks/bench_store.py --write

bench-wall: $(STAMP) ## how far past the limit adversaries get, and at what rate, into docs/benchmarks.md
	$(BIN)/python benchmarks/wall.py --write

SECONDS ?= 180
PROCESSES ?= 24
SEED ?=
torture: $(STAMP) ## kill, stop, starve and mislead the queue (SECONDS= PROCESSES= SEED=)
	$(BIN)/python benchmarks/torture.py --seconds $(SECONDS) --processes $(PROCESSES) $(if $(SEED),--seed $(SEED))

FUZZ ?= 3000
fuzz: $(STAMP) ## every importer against text that nobody meant (FUZZ= examples a test)
	FUZZ_EXAMPLES=$(FUZZ) $(BIN)/python -m pytest tests/importers/test_fuzzing.py -q

imported-runs: $(STAMP) ## two imported plans run to the end by scripted agents (minutes)
	$(BIN)/python -m pytest tests/end_to_end/imported_runs.py -q

docs: $(STAMP) ## write the generated parts of docs/ anew
	PYTHONPATH=tools $(BIN)/python -m docs_pages

clean: ## remove the environment and the caches
	rm -rf $(VENV) $(HF) .mypy_cache .ruff_cache .pytest_cache .hypothesis
