# Everything here installs into .venv from the pinned requirements/*.txt; nothing outside this folder is touched.
# Needs make and Python 3.11, 3.12 or 3.13. Choose another interpreter with: make PYTHON=/path/to/python install

VENV := .venv
BIN := $(VENV)/bin
CHECK := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c '$(CHECK)' 2>/dev/null; then command -v $$name; break; fi; done)
# uv installs in seconds. Where it is absent it comes from the package index, into .venv.
UV = $(shell if uv --version >/dev/null 2>&1; then echo uv; else echo $(BIN)/uv; fi)
OUT ?= runs/demo
ARGS ?=

PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
EXTRAS := gpu tpu serve plan pack remote rmbench aot tensorboard wandb
.PHONY: help install demo test quick test-long lint pins clean $(EXTRAS)

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed-base  ## install the project into .venv
	$(ACTIVATE)

demo: $(VENV)/installed-base  ## record, train and evaluate with and without memory; writes runs/demo/report.html (OUT=folder)
	$(BIN)/mem0-jax demo --out $(OUT) $(ARGS)

test: $(VENV)/installed-test  ## run the tests on up to four cores (ARGS="-k name" chooses)
	$(PYTEST) -m "not long" $(ARGS)

quick: $(VENV)/installed-test  ## run the files of tests/quick.txt: a bit of everything in a few minutes
	$(PYTEST) -m "not long" $(ARGS) $$(cat tests/quick.txt)

test-long: $(VENV)/installed-test  ## run those that take minutes each, which "make test" leaves out
	$(PYTEST) -m long $(ARGS)

lint: $(VENV)/installed-lint  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Each adds to what is installed: several can be had together, in any order.
gpu:  ## install with JAX for NVIDIA GPUs (CUDA 12)
tpu:  ## install with JAX for Cloud TPUs
serve:  ## install with what "mem0-jax serve" and "mem0-jax plan serve" need
plan:  ## install with OpenAI's client, for planners at an address
pack:  ## install with what "mem0-jax data pack" needs
remote:  ## install with what datasets at gs:// and hf:// addresses need
rmbench:  ## install with what "mem0-jax data import rmbench" needs
aot:  ## install with libtpu for "mem0-jax aot"
tensorboard:  ## install with what train.log_to=tensorboard needs
wandb:  ## install with what train.log_to=wandb needs
$(EXTRAS): %: $(VENV)/installed-%
	$(ACTIVATE)

pins: $(BIN)/python  ## compile requirements/*.txt anew from pyproject.toml (ARGS=--upgrade for newest versions)
	@mkdir -p requirements
	$(COMPILE) -o requirements/base.txt
	@before="-c requirements/base.txt"; for extra in test lint $(filter-out tpu,$(EXTRAS)); do \
		echo $$extra; $(COMPILE) $$before --extra $$extra -o requirements/$$extra.txt || exit 1; \
		before="$$before -c requirements/$$extra.txt"; done
	$(COMPILE) -c requirements/base.txt --extra tpu -o requirements/tpu.txt  # jax's own choice of libtpu

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info

# One set of pins for all three Pythons, in which the extras agree; no index address, so that a mirror works as well.
COMPILE = $(UV) pip compile -q pyproject.toml --universal --python-version 3.11 --fork-strategy fewest \
	--no-emit-index-url --no-annotate --custom-compile-command "make pins" $(ARGS)

ACTIVATE = @test -n "$$CI" || echo "Installed. Now: . $(BIN)/activate, then mem0-jax --help"

# uv can fetch a Python of its own where none is installed, and makes environments where Python's venv module is absent.
FIRST_UV := $(VENV)/first-uv
$(BIN)/python:
	@if uv --version >/dev/null 2>&1; then uv venv -q --allow-existing --python "$(or $(PYTHON),3.12)" $(VENV); \
	elif [ -z "$(PYTHON)" ]; then echo "No Python 3.11, 3.12 or 3.13 found: install one, or make PYTHON=/path/to/python" >&2; exit 1; \
	elif "$(PYTHON)" -m venv $(VENV) >/dev/null 2>&1; then $(BIN)/python -m pip install -q uv; \
	elif "$(PYTHON)" -m pip install -q --target $(FIRST_UV) uv; then \
		$(FIRST_UV)/bin/uv venv -q --allow-existing --python "$(PYTHON)" $(VENV) && \
		$(FIRST_UV)/bin/uv pip install -q --python $(BIN)/python uv; \
	else echo "$(PYTHON) has neither venv nor pip (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; fi

# Bytecode comes with it, as pip's does: without, the first start takes long, and all do where no bytecode may be written.
# Chips need the libtpu of their jax, whatever was installed since for aot or the tests, which do without chips.
# convert/ and configs/ are installed as mem0_jax.convert and mem0_jax.configs; the links show that to pyright.
$(VENV)/installed-%: requirements/%.txt pyproject.toml | $(BIN)/python
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python -r $<
	$(if $(wildcard $(VENV)/installed-tpu),$(UV) pip install -q --python $(BIN)/python -r requirements/tpu.txt)
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	@mkdir -p $(VENV)/editable/mem0_jax
	@ln -sfn ../../../convert $(VENV)/editable/mem0_jax/convert
	@ln -sfn ../../../configs $(VENV)/editable/mem0_jax/configs
	@touch $@
