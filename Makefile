# Every target makes the environment it needs, once. `make help` lists them.
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
UNFINISHED := .venv/.unfinished
PARITY := .venv/.parity
COMPILE := .venv/.compile
PYTEST := $(PYTHON) -m pytest -q
NVIDIA := /dev/nvidia0
# Evaluated when the environment is made: CUDA's libraries only where there is an NVIDIA GPU.
CUDA = $(shell { [ -e $(NVIDIA) ] || nvidia-smi -L; } >/dev/null 2>&1 && echo -r requirements-cuda.lock)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint slow browser parity compile distributed faults fuzz docs benchmark clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## create .venv and install requirements.lock, with CUDA for an NVIDIA GPU
	@echo "The environment is ready: .venv"

demo: $(INSTALLED) ## pretrain, probe and sample on the handwritten digits (2 to 3 minutes on 2 idle cores)
	@$(PYTHON) -m tools.demo

test: $(INSTALLED) ## run the tests that no target below runs
	@$(PYTEST) -n 2 --dist loadfile \
	  -m "not slow and not browser and not parity and not faults and not fuzz and not docs and not compile and not distributed"

lint: $(INSTALLED) ## check style and format
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .

slow: $(INSTALLED) ## run the tests that take minutes
	@$(PYTEST) -rs -m slow

browser: $(INSTALLED) ## click through the playground in Chromium, if there is one
	@$(PYTEST) -rs -m browser tests/playground

parity: $(PARITY) ## compare with Hugging Face's implementation (installs torch, once)
	@$(PYTEST) -rs -m parity

compile: $(COMPILE) ## compile for a TPU and a GPU without having one, up to half an hour (installs JAX, once)
	@$(PYTEST) -rs -m compile

distributed: $(INSTALLED) ## train on several devices and processes, replicated and sharded
	@$(PYTEST) -rs -m "distributed and not slow and not faults"

faults: $(INSTALLED) ## kill runs, fill disks and damage files; no data may be lost
	@$(PYTEST) -rs -m faults

fuzz: $(INSTALLED) ## read hundreds of damaged files; each is read or refused in one line
	@$(PYTEST) -rs -m fuzz

docs: $(INSTALLED) ## run the commands of README.md and docs/, and the notebook
	@$(PYTEST) -rs -m docs

benchmark: $(INSTALLED) ## measure the speed of training and sampling
	@$(PYTHON) -m tools.benchmark

clean: ## remove .venv and the caches; runs/ stays
	@rm -rf .venv .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PARITY): requirements-parity.txt $(INSTALLED)
	@echo "Installing requirements-parity.txt into .venv (once) ..."
	@$(PYTHON) -m pip install -q --disable-pip-version-check -c requirements.lock \
	  -r requirements-parity.txt --extra-index-url https://download.pytorch.org/whl/cpu
	@touch $@

$(COMPILE): requirements-compile.txt $(INSTALLED)
	@echo "Installing requirements-compile.txt into .venv (once, 1.6 GB) ..."
	@$(PYTHON) -m pip install -q --disable-pip-version-check -c requirements.lock \
	  -c requirements-cuda.lock -r requirements-compile.txt
	@touch $@

# UNFINISHED marks an interrupted installation; the next `make` then starts from nothing.
$(INSTALLED): requirements.lock requirements-cuda.lock
	@if [ -e $(UNFINISHED) ] || ! [ -x $(PYTHON) ]; then \
	  python=$$(for name in python3.11 python3; do \
	    $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	      2>/dev/null && echo $$name && break; done) \
	  || { echo "error: Python 3.11, 3.12 or 3.13 is needed; install python3.11" >&2; exit 2; }; \
	  rm -rf .venv && mkdir .venv && touch $(UNFINISHED) && $$python -m venv .venv; \
	fi
	@touch $(UNFINISHED)
	@echo "Installing requirements.lock into .venv (once, some minutes) ..."
	@$(PYTHON) -m pip install -q --disable-pip-version-check --use-pep517 -r requirements.lock $(CUDA)
	@$(PYTHON) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm $(UNFINISHED) && touch $@
