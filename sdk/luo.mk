# SPDX-License-Identifier: GPL-2.0
#
# For the Kbuild file of a file handler outside the kernel's tree:
#
#	obj-m := my_handler.o
#	include $(or $(LUO_SDK),$(objtree)/luo-sdk)/luo.mk
#
# It is built with
#
#	make LLVM=1 -C KERNEL_BUILD M=$PWD [LUO_SDK=DIR]
#
# where KERNEL_BUILD is what the kernel was built in or its headers, and DIR is
# this folder, if it is not KERNEL_BUILD/luo-sdk.

luo-sdk := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))

subdir-rustflags-y += -L $(luo-sdk) \
	$(patsubst $(luo-sdk)/lib%.rmeta,--extern %,$(wildcard $(luo-sdk)/lib*.rmeta))

# Not all kernel headers come with the kernel's own crates.
ifeq ($(wildcard $(objtree)/rust/libkernel.rmeta),)
subdir-rustflags-y += -L $(luo-sdk)/rust
endif

# The kernel's own symbol versions have ours, unless a distribution leaves them
# out. To modpost, having them twice is an error.
ifeq ($(shell grep -sm1 luo_core $(objtree)/Module.symvers),)
KBUILD_EXTRA_SYMBOLS += $(luo-sdk)/Module.symvers
endif
