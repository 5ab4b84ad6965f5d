# stief: make, make chat, make test. `make help` lists the rest.
#
#   CONFIG=release|sanitize|fuzz   one build folder each: build/$(CONFIG)
#   CXX=…                          any C++20 compiler (g++ >= 11, clang >= 14)
#   CUDA=0                         leave CUDA out although nvcc is there; CUDA_ARCH="80 90" or native;
#                                  CUDA_MORE=… goes to nvcc
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
CXX      ?= g++
CONFIG   ?= release
TARGET   := $(shell $(CXX) -dumpmachine)
ARCH     := $(firstword $(subst -, ,$(TARGET)))
BUILD    := build/$(CONFIG)$(if $(filter-out x86_64,$(ARCH)),-$(ARCH))
VERSION  := 0.1.0

CXXFLAGS ?= -O2 -g1
WARN     := -Wall -Wextra -Wshadow -Werror
FLAGS    := -std=c++20 $(WARN) -ffp-contract=off -fno-math-errno -pthread -MMD -MP -Isrc \
            -DSTIEF_VERSION='"$(VERSION)"'
LINK     := -pthread
RUNNER   ?=
DOT_OPT  := -O3
# V=1 shows the commands.
Q        := $(if $(V),,@)

ifeq ($(CONFIG),sanitize)
DOT_OPT  := -O1
FLAGS    += -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
LINK     += -fsanitize=address,undefined
endif
ifeq ($(CONFIG),fuzz)
DOT_OPT  := -O1
CXX      := clang++
FLAGS    += -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
LINK     += -fsanitize=fuzzer,address,undefined
endif

# The inner products, each file with the instructions it is named after (chosen at start-up).
ifeq ($(ARCH),x86_64)
KERNELS  := portable avx2 avx512 vbmi amx
ISA_avx2   := -mavx2 -mfma -mf16c
# GCC 12's own header starts unused operands with themselves and then warns of it (GCC bug 105593).
ISA_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma -mf16c -mavx2 \
              -mprefer-vector-width=512 -Wno-unknown-warning-option -Wno-maybe-uninitialized \
              -Wno-uninitialized
ISA_vbmi   := $(ISA_avx512) -mavx512vbmi -mavx512vnni
ISA_amx    := $(ISA_avx512) -mamx-tile -mamx-bf16
else ifeq ($(ARCH),aarch64)
KERNELS  := portable neon
else
KERNELS  := portable
endif
ALL_DOTS := $(wildcard src/backend/cpu/dot_*.cpp)
DOTS     := $(filter $(KERNELS:%=src/backend/cpu/dot_%.cpp),$(ALL_DOTS))

SOURCES  := $(filter-out $(ALL_DOTS),$(wildcard src/*/*.cpp src/backend/cpu/*.cpp)) $(DOTS)
LIBRARY  := $(filter-out src/commands/main.cpp,$(SOURCES))
OBJECTS  := $(SOURCES:%.cpp=$(BUILD)/%.o)
LIB_OBJ  := $(LIBRARY:%.cpp=$(BUILD)/%.o)
ENGINE   := $(filter-out $(BUILD)/src/commands/%,$(LIB_OBJ))
TESTS    := $(wildcard tests/*.cpp)
TEST_OBJ := $(TESTS:%.cpp=$(BUILD)/%.o)

# CUDA, where nvcc is found: for the GPU that is here, or by name for the processors of CUDA_ARCH and as
# PTX for later ones. The same .cu files are compiled by $(CXX) too, and played by tests/simt.
CUDA_SRC := $(wildcard cuda/*.cu)
NVCC     ?= $(shell command -v nvcc 2>/dev/null)
ifneq ($(CONFIG)$(filter 0,$(CUDA))$(filter-out $(shell uname -m),$(ARCH)),release)
NVCC     :=
endif
ifneq ($(NVCC),)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v $(NVCC))))
CUDA_ARCH ?= $(if $(shell nvidia-smi -L 2>/dev/null),native,80 90)
CUDA_CODE := $(if $(filter native,$(CUDA_ARCH)),-arch=native,$(foreach a,$(CUDA_ARCH),\
             -gencode arch=compute_$a,code=sm_$a) -gencode \
             arch=compute_$(lastword $(CUDA_ARCH)),code=compute_$(lastword $(CUDA_ARCH)))
CUDA_FLAGS := -std=c++20 -O3 -lineinfo --expt-relaxed-constexpr -ccbin $(CXX) $(CUDA_CODE) \
             -Xcompiler -Wall,-Wextra,-Wshadow,-Werror $(CUDA_MORE) -MMD -MP -Isrc -Icuda -Icuda/gpu
CUDA_OBJ := $(CUDA_SRC:%.cu=$(BUILD)/%.o) $(BUILD)/cuda/load_cublas.o
endif
ifneq ($(CUDA_OBJ),)
LINK_CUDA := -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
$(BUILD)/src/backend/select.o: FLAGS += -DHAVE_CUDA
endif

COMMA    := ,

.SECONDARY:                       # keep what a rule made on its way
.PHONY: all chat test race counts sass gpu check fuzz neon tools ladder tables figures core bench
.PHONY: clean help found floors FORCE
all: found stief

found:
	@echo "compiler: $(CXX) $(shell $(CXX) -dumpversion), $(TARGET), config $(CONFIG), kernels $(KERNELS)"
	@echo "CUDA:     $(if $(NVCC),$(NVCC) $(shell $(NVCC) --version | \
	    sed -n 's/.*release \([0-9.]*\).*/\1/p')$(COMMA) arch $(CUDA_ARCH),none: CPU only)"

stief: $(BUILD)/stief
	@cp -f $< $@.tmp && mv -f $@.tmp $@

$(BUILD)/stief: $(OBJECTS) $(CUDA_OBJ)
	@echo "  link $@"
	$(Q)$(CXX) $^ $(LINK) $(LINK_CUDA) -o $@

$(BUILD)/src/backend/cpu/dot_%.o: src/backend/cpu/dot_%.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  c++  $<"
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) $(DOT_OPT) $(ISA_$*) -c $< -o $@

$(BUILD)/src/%.o: src/%.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  c++  $<"
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) -c $< -o $@

# What objects were built with: another compiler or other flags build them again.
WITH     := $(CXX) $(FLAGS) $(CXXFLAGS) $(DOT_OPT)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(WITH)' | cmp -s - $@ || echo '$(WITH)' > $@

# What CUDA code was built for: changes when nvcc comes, goes or compiles for another GPU.
$(BUILD)/cuda.flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CUDA_OBJ) $(CUDA_FLAGS)' | cmp -s - $@ || echo '$(CUDA_OBJ) $(CUDA_FLAGS)' > $@

$(BUILD)/src/backend/select.o: $(BUILD)/cuda.flags

$(BUILD)/cuda/%.o: cuda/%.cu $(BUILD)/flags $(BUILD)/cuda.flags
	@mkdir -p $(@D)
	@echo "  nvcc $<"
	$(Q)$(NVCC) $(CUDA_FLAGS) -c $< -o $@

$(BUILD)/cuda/%.o: cuda/%.cpp $(BUILD)/flags $(BUILD)/cuda.flags
	@mkdir -p $(@D)
	@echo "  c++  $<"
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) -isystem $(CUDA_HOME)/include -c $< -o $@

chat: found stief                ## build, then talk to the model that ships
	./stief chat models/parlour

# ---- tests ----------------------------------------------------------------------------------------
DOCTEST  := $(firstword $(wildcard /usr/include/doctest/doctest.h /usr/local/include/doctest/doctest.h \
            /opt/homebrew/include/doctest/doctest.h $(DOCTEST_DIR)/doctest/doctest.h))

$(BUILD)/doctest.found:
	@mkdir -p $(@D)
	@if [ -z "$(DOCTEST)" ]; then tools/install_doctest.sh; fi
	@touch $@

# testing.h is compiled once for all tests; with short asserts a file takes 2.6 s instead of 4.2.
TESTED   := $(FLAGS) $(CXXFLAGS) -O1 -g1 -DDOCTEST_CONFIG_SUPER_FAST_ASSERTS $(DOCTEST_DIR:%=-I%)
BEGUN    := $(BUILD)/tests/begun.h

$(BEGUN).gch: tests/testing.h $(BUILD)/flags | $(BUILD)/doctest.found
	@mkdir -p $(@D)
	@echo "  c++  $<"
	@echo '#include "testing.h"' > $(BEGUN)
	$(Q)$(CXX) $(TESTED) -Itests -x c++-header $(BEGUN) -o $@

$(BUILD)/tests/test_%.o: tests/test_%.cpp $(BEGUN).gch $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  c++  $<"
	$(Q)$(CXX) $(TESTED) -Itests -include $(BEGUN) -c $< -o $@

$(BUILD)/tests/%.o: tests/%.cpp $(BUILD)/flags | $(BUILD)/doctest.found
	@mkdir -p $(@D)
	@echo "  c++  $<"
	$(Q)$(CXX) $(TESTED) -Itests -c $< -o $@

$(BUILD)/run_tests: $(LIB_OBJ) $(TEST_OBJ) $(CUDA_OBJ)
	@echo "  link $@"
	$(Q)$(CXX) $^ $(LINK) $(LINK_CUDA) -o $@

# The CUDA code played on the CPU: the harness, the .cu files and select.cpp compiled against it, and
# those of the tests that take a Backend.
SIMT_TESTS := main jobs scratch backends test_ops test_products test_inputs test_score \
              test_attention test_cache test_cache_rows test_append test_waiting_codes \
              test_joint_values test_turned_mean test_forward test_generated test_backward \
              test_backward_sums test_model_backward test_model_descent test_layer_loss \
              test_calibrate_backends test_watch test_audit test_singly
SIMT     := $(FLAGS) $(CXXFLAGS) -Wno-unknown-pragmas -Itests/simt -Icuda -Itests $(DOCTEST_DIR:%=-I%)
SIMT_OBJ := $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard tests/simt/*.cpp)) \
            $(CUDA_SRC:%.cu=$(BUILD)/simt/%.o) \
            $(BUILD)/simt/src/backend/select.o

$(BUILD)/tests/simt/test_%.o: tests/simt/test_%.cpp $(BEGUN).gch $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  c++  $<"
	$(Q)$(CXX) $(TESTED) -Wno-unknown-pragmas -Itests/simt -Icuda -Itests -include $(BEGUN) -c $< -o $@

$(BUILD)/tests/simt/%.o: tests/simt/%.cpp $(BUILD)/flags | $(BUILD)/doctest.found
	@mkdir -p $(@D)
	@echo "  c++  $<"
	$(Q)$(CXX) $(SIMT) -c $< -o $@

$(BUILD)/simt/cuda/%.o: cuda/%.cu $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  c++  $< (simt)"
	$(Q)$(CXX) $(SIMT) -O1 -x c++ -c $< -o $@

$(BUILD)/simt/src/%.o: src/%.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  c++  $< (simt)"
	$(Q)$(CXX) $(SIMT) $(if $(CUDA_SRC),-DHAVE_CUDA) -c $< -o $@

$(BUILD)/run_simt: $(SIMT_OBJ) $(SIMT_TESTS:%=$(BUILD)/tests/%.o) \
                   $(filter-out $(BUILD)/src/backend/select.o,$(LIB_OBJ))
	@echo "  link $@"
	$(Q)$(CXX) $^ $(LINK) -o $@

# The same with every load and store of a kernel seen: -fsanitize=thread without its runtime, whose
# calls tests/simt/watch answers. No SRA: a float4 stays one load of 16 bytes. Linked without -pie, so
# that addr2line knows an address as it is.
WATCH_FLAGS := -O1 -g -fsanitize=thread $(if $(findstring clang,$(CXX)),,-fno-tree-sra)
WATCHED  := $(BUILD)/watch/tests/simt/watch/scenes.o $(CUDA_SRC:%.cu=$(BUILD)/watch/%.o) \
            $(patsubst %,$(BUILD)/tests/simt/watch/%.o,counts names races tsan) \
            $(patsubst %,$(BUILD)/tests/simt/%.o,async cublas fiber memory runtime simt stream warp) \
            $(BUILD)/simt/src/backend/select.o $(BUILD)/tests/backends.o $(BUILD)/tests/scratch.o \
            $(BUILD)/tests/simt/variants.o $(filter-out $(BUILD)/src/backend/select.o,$(LIB_OBJ))

$(BUILD)/watch/cuda/%.o: cuda/%.cu $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  c++  $< (watched)"
	$(Q)$(CXX) $(SIMT) $(WATCH_FLAGS) -x c++ -c $< -o $@

$(BUILD)/watch/tests/%.o: tests/%.cpp $(BUILD)/flags | $(BUILD)/doctest.found
	@mkdir -p $(@D)
	@echo "  c++  $< (watched)"
	$(Q)$(CXX) $(SIMT) $(WATCH_FLAGS) -c $< -o $@

$(BUILD)/run_race: $(patsubst %,$(BUILD)/watch/tests/simt/watch/test_%.o,race counts) \
                   $(BUILD)/tests/main.o $(BUILD)/tests/jobs.o $(WATCHED)
	@echo "  link $@"
	$(Q)$(CXX) $^ $(LINK) -no-pie -o $@

$(BUILD)/counts: $(BUILD)/tests/simt/watch/counts_table.o $(WATCHED)
	@echo "  link $@"
	$(Q)$(CXX) $^ $(LINK) -no-pie -o $@

race: found $(BUILD)/run_race    ## no kernel has a race, and each of its barriers is needed
	$(BUILD)/run_race --jobs=$(JOBS) $(filter-out --gpu --gpu=only,$(TESTFLAGS))

counts: found $(BUILD)/counts    ## how kernels meet memory: conflicts of banks, sectors a request
	$(BUILD)/counts

# As many test cases at once as there are processors, or JOBS=1 in one process.
JOBS     ?= $(shell nproc 2>/dev/null || echo 2)

test: found stief $(BUILD)/run_tests $(BUILD)/run_simt   ## every test (TESTFLAGS=... goes to both programs)
	$(RUNNER) $(BUILD)/run_tests --jobs=$(JOBS) $(TESTFLAGS)
	$(RUNNER) $(BUILD)/run_simt --jobs=$(JOBS) $(filter-out --gpu --gpu=only,$(TESTFLAGS))

# What nvcc makes of the kernels; cuobjdump is of the toolkit, or of pip (nvidia-cuda-cuobjdump).
SASS_ARCH := 80 90
SASS_FLAGS := -std=c++20 -O3 --expt-relaxed-constexpr -ccbin $(CXX) -Xptxas -v -MMD -MP -Isrc \
              -Icuda -Icuda/gpu
define SASS_RULE
$(BUILD)/sass/%.sm_$1.cubin: cuda/%.cu
	@mkdir -p $$(@D)
	@test -n "$(NVCC)" || { echo "error: make sass needs nvcc" >&2; exit 1; }
	@echo "  nvcc $$< (sm_$1)"
	$(Q)$(NVCC) $(SASS_FLAGS) -cubin -arch=sm_$1 $$< -o $$@ 2> $$(@:.cubin=.log) || \
	    { cat $$(@:.cubin=.log) >&2; exit 1; }
endef
$(foreach a,$(SASS_ARCH),$(eval $(call SASS_RULE,$a)))

CUBINS   := $(foreach a,$(SASS_ARCH),$(CUDA_SRC:cuda/%.cu=$(BUILD)/sass/%.sm_$a.cubin))
sass: $(CUBINS)                  ## registers, spills, loads in flight of every kernel (nvcc, cuobjdump)
	python3 -B tools/sass_test.py
	python3 tools/sass.py $(BUILD)/sass $(SASS_ARCH)

# What the harness cannot prove: tests, sanitizers and figures of a device; GPU="tests bench": parts.
gpu: found $(BUILD)/stief $(BUILD)/run_tests tools   ## on a GPU: tests, compute-sanitizer, speed
	tools/gpu.sh $(BUILD) build/figures $(GPU)

floors:
	@tools/floors.sh

check: floors core test race $(if $(NVCC),sass)   ## floors, tests, races, tests again under the sanitizers
	$(MAKE) CONFIG=sanitize build/sanitize/stief build/sanitize/run_tests \
	    build/sanitize/run_simt
	build/sanitize/run_tests --jobs=$(JOBS) $(TESTFLAGS)
	build/sanitize/run_simt --jobs=$(JOBS) $(filter-out --gpu --gpu=only,$(TESTFLAGS))

# Each fuzzer runs FUZZ_SECONDS over what it can think of; what it finds becomes a test.
FUZZ_SECONDS ?= 60
FUZZERS  := $(patsubst tests/fuzz/%.cpp,%,$(wildcard tests/fuzz/fuzz_*.cpp))

fuzz:                            ## libFuzzer over safetensors, JSON and tokenizer files (clang++)
	@command -v clang++ >/dev/null || { echo "error: make fuzz needs clang++" >&2; exit 1; }
	$(MAKE) CONFIG=fuzz $(FUZZERS:%=run-%)

$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(ENGINE)
	@echo "  link $@"
	$(Q)$(CXX) $^ $(LINK) -o $@

run-fuzz_%: $(BUILD)/fuzz_%
	@mkdir -p $(BUILD)/found
	$< -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
	    -artifact_prefix=$(BUILD)/found/ -print_final_stats=1 2>&1 | tail -n 12

# The same tests on 64-bit Arm: Debian's g++-aarch64-linux-gnu, run under qemu-user.
neon:                            ## tests on 64-bit Arm (cross compiler and qemu-user)
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || \
	    { echo "error: install g++-aarch64-linux-gnu and qemu-user" >&2; exit 1; }
	$(MAKE) CXX=aarch64-linux-gnu-g++ build/release-aarch64/run_tests build/release-aarch64/stief
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/release-aarch64/run_tests -ts=base,backend $(TESTFLAGS)

tools: $(BUILD)/random_checkpoint $(BUILD)/random_bases   ## random weights and bases, to measure with

$(BUILD)/random_%: $(BUILD)/tools/random_%.o $(BUILD)/tests/random_checkpoint.o $(ENGINE) $(CUDA_OBJ)
	@echo "  link $@"
	$(Q)$(CXX) $^ $(LINK) $(LINK_CUDA) -o $@

$(BUILD)/tools/%.o: tools/%.cpp $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  c++  $<"
	$(Q)$(CXX) $(FLAGS) $(CXXFLAGS) -c $< -o $@

ladder: $(BUILD)/ladder          ## the steps of decode attention, timed (needs a GPU to run)

$(BUILD)/ladder: $(BUILD)/tools/ladder/ladder.o $(ENGINE) $(CUDA_OBJ)
	@echo "  link $@"
	$(Q)$(CXX) $^ $(LINK) $(LINK_CUDA) -o $@

$(BUILD)/tools/%.o: tools/%.cu $(BUILD)/flags $(BUILD)/cuda.flags
	@mkdir -p $(@D)
	@test -n "$(NVCC)" || { echo "error: make ladder needs nvcc" >&2; exit 1; }
	@echo "  nvcc $<"
	$(Q)$(NVCC) $(CUDA_FLAGS) -c $< -o $@

LEARN    ?= ../shared/data/text/novels-train.txt
MEASURE  ?= ../shared/data/text/novels-heldout.txt
WIKITEXT ?= ../shared/data/text/wikitext2-test.txt
C4       ?= ../shared/data/text/c4-sample.jsonl.gz
tables: found stief              ## measurements.md's tables, in 15 minutes: LEARN= MEASURE= WIKITEXT= C4=
	tools/tables.sh ./stief models/parlour $(LEARN) $(MEASURE) $(WIKITEXT) $(C4)

figures:                         ## the README's pictures (python3)
	python3 -B tools/figure_key.py src/cache/key.svg
	python3 -B tools/figure_kl.py tools/kl.json tools/kl.svg
	python3 -B tools/figure_needles.py tools/needles.json tools/needles.svg

core:                            ## lines of the reading order and its minutes, and of every floor
	@tools/core.sh

bench: found stief               ## speed of the model that ships, as shares of the measured bandwidth
	./stief bench models/parlour

clean:                           ## remove everything that was built
	rm -rf build stief

help:                            ## this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 12

-include $(OBJECTS:.o=.d) $(TEST_OBJ:.o=.d) $(CUDA_OBJ:.o=.d) $(SIMT_OBJ:.o=.d) $(WATCHED:.o=.d) \
    $(CUBINS:.cubin=.d) \
    $(patsubst %,$(BUILD)/%.d,watch/tests/simt/watch/test_race \
    watch/tests/simt/watch/test_counts tests/simt/watch/counts_table)
