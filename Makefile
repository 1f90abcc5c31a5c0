# The two commands of the README are `make demo` and `make test`; both set up .venv first, once.
# PYTHON=python3.12 chooses the interpreter; without it the newest usable one of 3.13, 3.12, 3.11 is taken.

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --require-virtualenv
INPUTS := setup.cfg pyproject.toml constraints.txt
BUILD := build/tiny
ORACLES := $(VENV)/oracles
CPU_INDEX := https://download.pytorch.org/whl/cpu

# A Python that was removed or upgraded leaves an environment that cannot start: then it is made again.
$(shell $(VENV)/bin/python -c '' 2>/dev/null || rm -f $(VENV)/.ready* $(VENV)/bin/python)

.PHONY: help setup demo test mac-check oracles long faults torture lint clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo   set up, export the embedded checkpoint, run the packages, compare them with PyTorch, bundle them"
	@echo "make test   set up, run the tests"
	@echo "make mac-check  on a Mac: Core ML beside the MIL runtime, plans and latencies; BUILD=... adds a build of yours"
	@echo "make setup  only set up .venv"
	@echo "make oracles  compare the model with transformers and timm, and show how closely it agrees"
	@echo "make long   the tests that take minutes and gigabytes"
	@echo "make faults  plant every kind of fault, on two checkpoints, and compare 100 clean ones"
	@echo "make torture  hostile files, kills and full disks by the thousand; their counts go into docs/reliability.md"
	@echo "make lint   formatter, linter and types, in check mode"
	@echo "make clean  remove what was built (make distclean: .venv too)"

setup: $(VENV)/.ready

demo: $(VENV)/.ready
	$(VENV)/bin/python -m validation.demo $(BUILD)

# Two processes, each with whole files, so that what a file makes once is made once; one thread each, for two threads of
# two processes wait for each other on two cores.
test: $(VENV)/.ready-test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

# BUILD only where it was typed: the one above is the demo's.
mac-check: $(VENV)/.ready
	$(VENV)/bin/python -m validation.mac_check $(if $(findstring command,$(origin BUILD)),"$(BUILD)")

# -rP shows what passing tests print: the measured dB.
oracles: $(VENV)/.ready-oracles
	PYTHONPATH=$(ORACLES) $(VENV)/bin/python -m pytest -rP tests/reference/test_oracles.py

long: $(VENV)/.ready-test
	PYTHONPATH=tests/export:tests/data $(VENV)/bin/python -m pytest tests/long/long_*.py
	$(VENV)/bin/python -m pytest -m long

faults: $(VENV)/.ready
	$(VENV)/bin/python -m validation.faults --checkpoint tiny
	$(VENV)/bin/python -m validation.faults --checkpoint seeded
	$(VENV)/bin/python -m validation.faults --seeds 100

# The short form of these suites is part of `make test`; TORTURE=0 makes its counts alone.
TORTURE := 1
COUNTS := $(CURDIR)/build/reliability

torture: $(VENV)/.ready-test
	rm -rf $(COUNTS)
	FASTVLM_TORTURE=$(TORTURE) FASTVLM_RELIABILITY=$(COUNTS) OMP_NUM_THREADS=1 \
		$(VENV)/bin/python -m pytest -n 2 --dist loadfile tests/hostile
	$(VENV)/bin/python docs/generate_reliability.py $(COUNTS)

lint: $(VENV)/.ready-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

distclean: clean
	rm -rf $(VENV)

# A stamp is written only when pip succeeded, so an interrupted installation is taken up again by the next make.
$(VENV)/.ready: $(INPUTS) | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@

# In a folder of their own: beside a CPU torch the stock torchvision only imports with the help of
# tests/reference/torchvision_ops.py, and installed for all it would break transformers. --no-deps: it asks for its own torch.
$(VENV)/.ready-oracles: $(VENV)/.ready-test
	rm -rf $(ORACLES)
	$(PIP) install -c constraints.txt --no-deps --target $(ORACLES) timm torchvision
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-test
	$(PIP) install -c constraints.txt -e '.[test,dev]'
	@touch $@

$(VENV)/bin/python:
	@python=$$(.ci/find-python) || exit 2; \
	echo "setting up $(VENV) with $$($$python --version); the first time downloads 0.5 GB (with a GPU build of torch: several)"; \
	if [ "$$(uname -s)" = Linux ] && [ -z "$$PIP_EXTRA_INDEX_URL$$PIP_INDEX_URL$$PIP_FIND_LINKS" ]; then \
		echo "for torch's CPU build: PIP_EXTRA_INDEX_URL=$(CPU_INDEX) make"; fi; \
	$$python -m venv --clear $(VENV)
