# make train   create .venv, install, train the default configuration
# make test    create .venv, install with everything the tests need, run them
# make test-gpu  the tests of the Triton kernels on this machine's GPU, then under compute-sanitizer where there is one
# make test-vm   the tests of tiers of memory in a virtual machine with persistent memory (QEMU, ten minutes)
# make reproduce STUDY=published   a study of experiments/ to its tables and plots; ARGS="short=true" for its short form
# make examples  the pages in docs/examples, on an idle machine with Gowalla and ml-100k (ten minutes); or one of them:
#   make example-run, make example-sweep, make example-study
# TORCH=...    another build of torch; VENV=... another place; PYTHON=... another interpreter; ARGS=... for train and reproduce
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
ARGS ?=

# A stamp a state of the environment: what is installed, by which requirements.
base := $(VENV)/.installed-$(subst =,-,$(subst /,-,$(TORCH)))
dev := $(base)-dev

.PHONY: train reproduce test test-gpu test-vm examples example-run example-sweep example-study lint types format clean

train: $(base)
	$(VENV)/bin/gnnrec train $(ARGS)

reproduce: $(dev)
	$(VENV)/bin/python experiments/reproduce.py $(STUDY) $(ARGS)

test: $(dev)
	$(VENV)/bin/pytest tests/interpreter -rs --numprocesses auto --dist worksteal
	$(VENV)/bin/pytest -rs --numprocesses auto --dist loadscope

test-gpu: $(dev)
	$(VENV)/bin/python -c 'from gnnrec import device; print(device.resolve("cuda"))'
	$(VENV)/bin/pytest tests/gpu -rs
	PYTHON=$(VENV)/bin/python tests/gpu/sanitize.sh

test-vm: $(dev)
	$(VENV)/bin/python tests/vm/run.py

examples: example-run example-sweep example-study

example-run: $(dev)
	mkdir -p docs/examples
	rm -rf outputs/examples/gowalla
	$(VENV)/bin/gnnrec calibrate  # for the roofline
	$(VENV)/bin/gnnrec train data=gowalla experiment=fastest profile=on view=plain hydra.run.dir=outputs/examples/gowalla
	$(VENV)/bin/gnnrec report run=outputs/examples/gowalla out=docs/examples/gowalla.html

example-sweep: $(dev)
	mkdir -p docs/examples
	rm -rf outputs/examples/batch_size
	$(VENV)/bin/gnnrec train -m data=gowalla experiment=fastest trainer.batch_size=4096,16384,65536,262144 view=plain \
		hydra.sweep.dir=outputs/examples/batch_size
	$(VENV)/bin/gnnrec report sweep=outputs/examples/batch_size out=docs/examples/batch_size.html

example-study: $(dev)
	mkdir -p docs/examples
	rm -rf outputs/examples/study
	$(VENV)/bin/python profiling/study.py out=outputs/examples/study
	$(VENV)/bin/python profiling/study_report.py outputs/examples/study/study.json docs/examples/study.html

lint: $(dev)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(dev)
	$(VENV)/bin/mypy

format: $(dev)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first and alone: which build of it is installed is a choice, and what comes after is satisfied by it.
$(base): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gnnrec needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet '$(TORCH)'
	$(VENV)/bin/pip install --quiet --editable .
	@touch $@

$(dev): $(base)
	$(VENV)/bin/pip install --quiet --editable '.[dev,cuda,dgl]'
	@touch $@
