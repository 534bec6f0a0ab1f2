# Two commands: `make demo` trains and evaluates on the embedded default, `make test` runs the test suite.
# Both make .venv and install the exact versions of constraints.txt first. Needs python3 >= 3.10 with venv, make
# and a C++ compiler (DeepSpeed compiles one small operator at its first use on CPU).

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# DeepSpeed and torch look for ninja on the PATH.
export PATH := $(BIN):$(PATH)
# Ranks where there is no GPU; with GPUs the launcher uses all of them.
CPU_RANKS ?= 2
# Unit tests run side by side; those that start trainings of their own (tests/e2e, tests/faults) one after the other.
# The latter wait for real processes within limits that a busy machine may miss: a failed one gets a second try, which
# the summary names (RERUN).
TEST_WORKERS ?= 2

.PHONY: demo test test-long lint docs setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] < (3, 13) else \
	"python 3.10 to 3.12 is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.x ...")'
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed (package g++ or gcc-c++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --quiet --upgrade pip
	$(PIP) --quiet setuptools wheel ninja
	$(PIP) torch torchvision
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

demo: setup
	@ranks=$$($(BIN)/python -c 'import torch; print("" if torch.cuda.is_available() else "--num_gpus $(CPU_RANKS)")') && \
	$(BIN)/deepspeed $$ranks launchers/pretrain.py --deepspeed_config ds_configs/zero2.json

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --ignore tests/e2e --ignore tests/faults
	$(BIN)/python -m pytest --reruns 1 tests/e2e tests/faults

# What `test` leaves out for time.
test-long: setup
	$(BIN)/python -m pytest -m long tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, into build/site; a broken link is an error.
docs: setup
	$(BIN)/mkdocs build

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
