# Each target does its own setup; only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GPU_READY := .venv-gpu/.ready
BENCHMARKS := $(filter-out __init__ common demo_curve,$(basename $(notdir $(wildcard benchmarks/*.py))))
RUNGS := record_10l record_11l_ema record_sp4096 record_sp8192_loop record_sp8192_ttt record_sp8192_gates

# Waiting threads yield their core. With spinning, two threads took five times as long on two cores that another
# process also used.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-record test test-slow rehearsal lint format bench gpu-program gpu-programs gpu-check \
        tensorboard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

setup: $(READY) ## create the virtual environment with the exact versions in requirements.txt

demo: $(READY) ## train, quantize, export and score the recipe at a small scale (under 5 minutes on 2 cores)
	@$(BIN)/python demo.py

demo-record: $(READY) ## a record attempt at demo scale: two seeds, packed and audited; then the script, run alone
	@$(BIN)/python -m records.demo

test: lint ## lint, types and the tests (about 12 minutes on 2 cores)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY) ## the slow tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

rehearsal: $(READY) ## two hosts on this machine, a cut cable and a restart (needs root and ip netns)
	@$(BIN)/python -m pytest -rs -m slow tests/integration/test_two_hosts.py

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## let ruff fix and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## run every benchmark; results go to benchmarks/results
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

$(GPU_READY): requirements-gpu.txt
	@echo "Installing a CUDA build of torch into .venv-gpu: a download of 2.8 GB, 4.7 GB on disk."
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-gpu.txt
	@touch $@

gpu-program: $(GPU_READY) ## what an H100 would run for CONFIG (default: the record's), predicted without a GPU
	@.venv-gpu/bin/python -m benchmarks.gpu_program $(if $(CONFIG),--config $(CONFIG))

gpu-programs: $(GPU_READY) $(READY) ## the same for every rung, two at a time, and the chart (10 to 30 minutes)
	@printf 'configs/%s.yaml\n' $(RUNGS) | OMP_NUM_THREADS=1 xargs -P 2 -n 1 \
	  .venv-gpu/bin/python -m benchmarks.gpu_program --config >/dev/null
	@$(BIN)/python -m docs.step $(RUNGS:%=benchmarks/results/gpu_program-%.json)

gpu-check: $(READY) ## what must hold on a GPU, and a step beside its prediction (under 8 minutes; GOLDEN, DATA, TOKENIZER)
	@$(BIN)/python -m benchmarks.gpu_check $(if $(GOLDEN),--golden $(GOLDEN)) $(if $(DATA),--data $(DATA)) $(if $(TOKENIZER),--tokenizer $(TOKENIZER))

tensorboard: $(READY) ## watch the runs in a browser
	@$(BIN)/tensorboard --logdir runs

clean: ## remove the virtual environment, caches and the demo's data and runs
	rm -rf $(VENV) .venv-gpu .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis runs/demo runs/demo_curve runs/demo_record
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
