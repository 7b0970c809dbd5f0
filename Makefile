# Two commands are enough: `make demo` and `make test`.  Both make what they need first.
#
#   make install TORCH=torch==2.13.0 TORCH_INDEX=https://download.pytorch.org/whl/cu130     with another build of PyTorch

PYTHON       ?= python3
VENV         ?= .venv
TORCH        ?=
TORCH_INDEX  ?=
PYTEST       ?=
ARGS         ?=

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
RUN := $(VENV)/bin/python

.PHONY: help install dev demo test test-gpu check check-gpus fmt bench figures bench-gpu bench-promise bench-kernels constraints clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.core  ## a virtual environment with hotstart and the CPU build of PyTorch
dev: $(VENV)/.dev  ## the same, with what the tests need

demo: $(VENV)/.demo  ## the shipped checkpoint behind the real server, then the warm-up for a GPU that is not here, in three acts
	$(RUN) examples/demo.py $(ARGS)
	$(RUN) examples/three_acts.py

test: dev  ## all tests that need no GPU
	$(RUN) -m pytest $(PYTEST)

test-gpu: dev  ## the tests that need a GPU
	$(RUN) -m pytest -m gpu $(PYTEST)

check: dev  ## format, lint, types, the rules of the package, and that the documents tell the figures measured
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -q tests/unit/test_architecture.py
	$(RUN) -m bench.figures --check
	$(RUN) tools/cli_docs.py --check

check-gpus: install  ## compile every published size for every GPU we name, without one
	$(RUN) tools/check_gpus.py

fmt: dev  ## mend format and lint
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

bench: dev  ## speed against transformers
	$(RUN) -m bench

figures: dev  ## every number and picture of the documents, from bench/results
	$(RUN) -m bench.figures

bench-gpu: dev  ## speed on all GPUs that are here: every shape, a cold and a warm start, peers (5 minutes on two GPUs)
	$(RUN) -m bench.gpu_table $(ARGS)

bench-promise: dev  ## the promise's records, on one GPU (5 minutes)
	$(RUN) -m bench.promise $(ARGS)

bench-kernels: dev  ## the Gated DeltaNet kernels on this GPU
	$(RUN) -m bench.gdn_prefill $(ARGS)
	$(RUN) -m bench.gdn_decode

constraints: dev  ## write down the versions that are installed here
	$(RUN) tools/freeze.py constraints.txt

clean:  ## remove the virtual environment
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("hotstart needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# A wish for another torch is looked at each time; without one, the stamps decide.
ifneq ($(TORCH)$(TORCH_INDEX),)
.PHONY: $(VENV)/.torch
endif
$(VENV)/.torch: constraints.txt tools/install_torch.py | $(VENV)/bin/python
	$(RUN) tools/install_torch.py constraints.txt $(VENV)/constraints.txt --torch '$(TORCH)' --index '$(TORCH_INDEX)'
	@touch $@

$(VENV)/.core: pyproject.toml $(VENV)/.torch
	@echo "hotstart and the libraries it needs (Triton is the largest, about 190 MB)"
	$(PIP) install --quiet --constraint $(VENV)/constraints.txt --editable .
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.core
	$(PIP) install --quiet --constraint $(VENV)/constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.core
	$(PIP) install --quiet --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@touch $@
