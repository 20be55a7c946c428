# SPDX-License-Identifier: GPL-2.0
#
# What a person types. Inside a kernel tree kbuild reads Kbuild, not this.

FLAVOUR ?= rust
VM := cargo run -q --release -p luo-vm --

.PHONY: help demo test bench vm kernel sdk docs clippy fmt fmtcheck clean
.NOTPARALLEL:

help:
	@echo 'make demo      memory and a device that uses it survive a kexec, step by step'
	@echo 'make test      every test; ends with "N passed, N failed"; FLAVOUR=debug looks'
	@echo '               closer at the handlers'
	@echo 'make bench     what live update costs, counted in instructions'
	@echo 'make vm        a prompt in the virtual machine; MODULE=FILE.ko loads a module of'
	@echo '               your own there'
	@echo 'make kernel    only the kernel, in out/FLAVOUR/'
	@echo 'make sdk       the kernel, and what a handler outside its tree is built with'
	@echo 'make docs      the documentation, in out/docs/index.html'
	@echo 'make clippy    lint everything; warnings are errors'
	@echo 'make fmt       format everything (fmtcheck: only look)'
	@echo 'make clean     remove what was built here; the cached kernels stay'
	@echo
	@echo 'FLAVOUR=rust   the Rust core and memfd handler (the default)'
	@echo '        c      the C core and handler of the same kernel'
	@echo '        rust-cmemfd  the Rust core with the C memfd handler and C FLBs'
	@echo '        c-flb  c, with the same C FLBs'
	@echo '        debug  rust, with KASAN, lockdep, kmemleak and fault injection'
	@echo 'KSRC=DIR       use this Linux 7.3 source instead of fetching one'
	@echo 'LUO_CACHE=DIR  keep source and kernel builds there (~/.cache/rust-luo)'

demo: kernel
	@$(VM) demo --flavour $(FLAVOUR)

vm: kernel
	@$(VM) vm --flavour $(FLAVOUR) $(addprefix --module ,$(MODULE))

ifeq ($(FLAVOUR),debug)
test: kernel-debug
	@$(VM) test --flavour debug
else
test: kernel-rust kernel-c kernel-rust-cmemfd kernel-c-flb
	@$(VM) test
endif

bench: kernel-rust kernel-c
	@$(VM) bench

kernel: kernel-$(FLAVOUR)

kernel-%:
	@tools/kernel $*

sdk: kernel
	@tools/kernel --sdk $(FLAVOUR)

docs: kernel-rust
	@tools/docs

clippy:
	tools/kernel --clippy
	cargo clippy -q --workspace --all-targets -- -D warnings

fmt:
	tools/kernel --fmt
	cargo fmt --all

fmtcheck:
	tools/kernel --fmt --check
	cargo fmt --all --check

clean:
	rm -rf out target
