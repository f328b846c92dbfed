# SPDX-License-Identifier: Apache-2.0
# `make run` and `make test` set up what they need; nothing has to be typed before them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# A process for each core; one that is done takes over from the others, whose tests may be long.
SHARED = -n $(JOBS) --dist worksteal

QEMU_NEEDS := qemu-system-aarch64:qemu-system-arm setpriv:util-linux
TEST_NEEDS := $(QEMU_NEEDS) dtc:device-tree-compiler iasl:acpica-tools openssl:openssl
# The core's own tests, and how many of its branches they have to reach, in per cent.
CORE_TESTS := $(filter-out %stateful.py,$(wildcard tests/test_sdei_*.py)) tests/test_hostile_host_events.py \
    tests/test_registers.py tests/test_registers_moves.py tests/test_registers_sections.py
CORE_COVERAGE := 98
LINUX_NEEDS := $(QEMU_NEEDS) aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu \
    /usr/share/qemu-efi-aarch64/QEMU_EFI.fd:qemu-efi-aarch64

.PHONY: help run test test-nightly test-linux linux-demo ras-demo check bench bench-qemu bench-migrate bench-postcopy bench-ras lock clean

help:
	@echo "make run       set up and run the SDEI selftest in a real AArch64 guest"
	@echo "make test      set up and run everything: linters, types, all tests"
	@echo "make linux-demo fetch a Debian kernel and inject an event into a CPU that has masked everything"
	@echo "make ras-demo  report a hardware error in a process of that kernel, which boots by ACPI"
	@echo "make test-linux all tests with Debian kernels"
	@echo "make test-nightly every fault at every step of a migration, and millions of inputs"
	@echo "make check     linters and types only"
	@echo "make bench     the measurements of machine unicorn (about a minute)"
	@echo "make bench-qemu those of machine qemu (about two)"
	@echo "make bench-migrate what moving a guest costs, on both (about five)"
	@echo "make bench-postcopy what asynchronous page faults are worth: small guests and Linux (about twenty)"
	@echo "make bench-ras reports of hardware errors to Linux, and boots by DT, ACPI and UEFI (about three)"
	@echo "make lock      resolve requirements.lock anew"
	@echo "make clean     remove the environment and what was built"

run: $(STAMP)
	$(BIN)/sdeivirt selftest

test: $(STAMP) check
	@./tools/need-apt $(TEST_NEEDS)
	$(BIN)/python -m pytest $(SHARED) -m "not campaign and not linux and not linux_full and not nightly"
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not campaign and not machine" $(CORE_TESTS) \
	    --cov=sdeivirt.sdei --cov-branch --cov-report=term --cov-fail-under=$(CORE_COVERAGE)
	@./tools/need-apt $(LINUX_NEEDS)
	$(BIN)/python -m pytest $(SHARED) -m "linux or campaign"

test-nightly: $(STAMP)
	@./tools/need-apt $(TEST_NEEDS)
	$(BIN)/python -m pytest -n $(JOBS) -m nightly --durations=10

test-linux: $(STAMP)
	@./tools/need-apt $(LINUX_NEEDS)
	$(BIN)/python -m pytest -n $(JOBS) -m "linux or linux_full" --durations=10

linux-demo: $(STAMP)
	@./tools/need-apt $(LINUX_NEEDS)
	@$(BIN)/python guests/linux/demo.py

ras-demo: $(STAMP)
	@./tools/need-apt $(LINUX_NEEDS)
	@$(BIN)/python guests/linux/ras_demo.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/sdeivirt bench

bench-qemu: $(STAMP)
	@./tools/need-apt $(LINUX_NEEDS)
	@$(BIN)/python guests/linux/fetch.py --kernel bookworm
	$(BIN)/sdeivirt bench qemu --kernel build/linux/bookworm/Image --initrd build/linux/bookworm/initrd.cpio.gz

bench-migrate: $(STAMP)
	@./tools/need-apt $(LINUX_NEEDS)
	@$(BIN)/python guests/linux/fetch.py --kernel bookworm
	$(BIN)/sdeivirt bench migrate
	$(BIN)/sdeivirt bench migrate qemu --kernel build/linux/bookworm/Image --initrd build/linux/bookworm/initrd.cpio.gz

bench-postcopy: $(STAMP)
	@./tools/need-apt $(LINUX_NEEDS)
	$(BIN)/sdeivirt bench postcopy unicorn
	$(BIN)/sdeivirt bench postcopy qemu
	@$(BIN)/python guests/linux/fetch.py --kernel bookworm
	$(BIN)/sdeivirt bench postcopy linux --kernel build/linux/bookworm/Image --initrd build/linux/bookworm/initrd.cpio.gz
	$(BIN)/sdeivirt bench lazy-restore

bench-ras: $(STAMP)
	@./tools/need-apt $(LINUX_NEEDS)
	@$(BIN)/python guests/linux/fetch.py --kernel bookworm
	$(BIN)/sdeivirt bench ras --kernel build/linux/bookworm/Image --initrd build/linux/bookworm/initrd.cpio.gz

lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --upgrade -o requirements.lock

# The environment, then the package in place; its build makes the guests. The lock is complete, so pip must not resolve:
# it would take an extra ("coverage[toml]") for a requirement without a pin.
$(STAMP): requirements.lock pyproject.toml hatch_build.py $(wildcard guests/*.* guests/lib/*.* guests/monitor/*.* guests/conform/*.* guests/hostile/*.* guests/image/*.* guests/mover/*.* guests/tasks/*.*)
	@./tools/make-venv $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist src/sdeivirt/guests/bin .mypy_cache .ruff_cache .pytest_cache .hypothesis
