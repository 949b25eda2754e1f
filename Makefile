# Two commands set everything up: `make demo` and `make test`. Both create the environment in .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test check test-kernels test-parts test-runs lint bench gpu kills multi-node cuda clean

demo: $(READY)
	$(BIN)/hpfwi demo --overwrite

# The check compiles the loops that all parts use, beside the linters. Then three parts at the same time, their lines
# mixed: the first computes and compiles, the others often wait for processes.
test: $(READY)
	$(MAKE) --jobs=2 --output-sync=target lint check
	$(MAKE) --jobs=3 --output-sync=line --keep-going test-kernels test-parts test-runs

check: $(READY)
	$(BIN)/hpfwi check

test-kernels:
	$(BIN)/python -m pytest -p no:cacheprovider tests/kernels $(wildcard tests/test_*.py)

test-parts:
	$(BIN)/python -m pytest -p no:cacheprovider tests/hpfwi tests/cluster

test-runs:
	$(BIN)/python -m pytest -p no:cacheprovider tests/runs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/acoustic.py

# The kernels on this machine's NVIDIA GPU: tests and benchmarks, one table. Needs no environment of ours: any Python with
# NumPy, torch, Numba, CuPy and pytest does (make gpu PYTHON=...); OUT is the folder of the JSON, MINUTES the time it has.
gpu:
	PYTHONPATH=kernels $(PYTHON) benchmarks/gpu.py $(if $(OUT),--out $(OUT)) $(if $(MINUTES),--minutes $(MINUTES))

# Longer than `make test` allows: a hundred killed workers and drivers, runs on several hosts, and every CUDA kernel compiled.
kills: $(READY)
	$(BIN)/python tests/runs/kill_campaign.py --kills 100 --folder $$(mktemp -d) --out benchmarks/results/kills.json

multi-node: $(READY)
	HPFWI_MULTI_NODE=1 $(BIN)/python -m pytest tests/runs/nodes

cuda: $(READY)
	HPFWI_COMPILE_ALL=1 $(BIN)/python -m pytest tests/kernels/test_acoustic_cuda_compiled.py tests/kernels/test_acoustic_cuda_streaming_compiled.py

# torch goes first and alone: with it in place no other package asks for another build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build
