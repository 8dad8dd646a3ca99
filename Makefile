# The two commands: `make demo` trains, samples and scores on real digits; `make test` runs the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch's own index of CPU wheels, asked for torch alone. Where it cannot be reached pip goes on without.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-isa faults test-slow gpu-check lint assets clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train on real digits, sample, score, draw (a few minutes on a laptop)"
	@echo "make test       the test suite, offline, a few minutes"
	@echo "make test-isa   the numerical tests as other processors compute them, in another order"
	@echo "make faults     thousands of faults: kills, full disks, damaged files, wrong inputs (40 minutes)"
	@echo "make test-slow  the tests that take longer"
	@echo "make gpu-check  what this GPU reaches, and whether it computes what a CPU does (ten minutes at most)"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make assets     make the bundled classifiers and snapshots again (about half an hour)"

$(VENV)/torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || \
		$(PIP) install -q --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) -c constraints.txt torch
	touch $@

$(VENV)/package: $(VENV)/torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/package

demo: $(VENV)/package
	$(BIN)/ditkit demo

# One thread and one process per core: two OpenMP pools on the same cores wait for each other.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

# The tests of mathematics again as processors without AVX-512, without AMX or without either compute them, on one
# thread and on two, each time in another random order, which is printed. (torch's own kernels in bf16 ask oneDNN what the
# processor can, so "default" alone would be a processor that there is not.)
NUMERICAL := $(addprefix tests/test_, goldens.py metrics.py transports.py samplers.py guidance.py backbones.py udit.py \
	mdm.py matryoshka.py pyramid.py packing.py space_time.py likelihood.py adams.py around.py tread.py mean_flow.py)
ISA = DITKIT_TEST_ORDER=random $(BIN)/python -m pytest -q $(NUMERICAL)
test-isa: $(VENV)/dev
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 $(ISA) -n auto
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 $(ISA)
	ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 $(ISA) -n auto
	ONEDNN_MAX_CPU_ISA=AVX512_CORE OMP_NUM_THREADS=1 $(ISA) -n auto

# Kills, full disks, damaged files and wrong inputs, with a fixed seed; docs/reliability.md says what is promised.
faults: $(VENV)/dev
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m faults --out ../docs/reports/faults.json

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -q -m slow

# On a machine with a GPU: torch's default build, or the one that is installed there; nothing but ditkit's own dependencies and
# pytest. Installing takes its own time; the check itself stops after ten minutes and says what it left out.
GPU_VENV := .venv-gpu
$(GPU_VENV)/package: pyproject.toml
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv --system-site-packages $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip --disable-pip-version-check install -q -e . 'pytest>=9'
	touch $@

gpu-check: $(GPU_VENV)/package
	$(GPU_VENV)/bin/python -m ditkit bench --gpu --tests tests --out docs/reports/gpu-check.json --replace

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

AS_DIT := --name digits-dit --transport.path ddpm --transport.predict noise --transport.variance learned \
	--sample.guidance 1.5
TINY := --name fashion --backbone.width 96 --backbone.depth 4 --backbone.heads 3
assets: $(VENV)/package
	$(BIN)/ditkit classifier digits --replace --out src/ditkit/assets/classifiers/digits.safetensors
	$(BIN)/ditkit classifier fashion-mnist --replace --out src/ditkit/assets/classifiers/fashion-mnist.safetensors
	for side in 16 32; do \
		$(BIN)/ditkit classifier fashion-mnist --data.size $$side --replace \
			--out src/ditkit/assets/classifiers/fashion-mnist-$$side.safetensors || exit 1; \
	done
	$(BIN)/ditkit classifier clipart --replace --out src/ditkit/assets/classifiers/clipart.safetensors
	$(BIN)/ditkit classifier clipart --data.size 32 --replace --out src/ditkit/assets/classifiers/clipart-32.safetensors
	$(BIN)/ditkit train digits --out runs/digits
	$(BIN)/ditkit train digits $(AS_DIT) --out runs/digits-dit
	$(BIN)/ditkit train fashion-sit $(TINY) --out runs/fashion
	for name in digits digits-dit fashion; do \
		$(BIN)/ditkit convert runs/$$name --dtype bf16 --replace --out src/ditkit/assets/snapshots/$$name || exit 1; \
	done

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist src/*.egg-info
