# SPDX-License-Identifier: GPL-2.0
#
# The part of luo_iommu that is linked into iommufd, whose Makefile includes
# this.

luo_iommufd := ../../../kernel/liveupdate/luo/handlers/iommu/glue.o

iommufd-$(subst m,y,$(CONFIG_LIVEUPDATE_RUST_IOMMU)) += $(luo_iommufd)
CFLAGS_$(luo_iommufd) := -I$(srctree)

# io_pagetable.c keeps this structure to itself; glue.c repeats it. A kernel
# in which it is another fails the build, not the machine.
luo_pages_list := struct iopt_pages_list { struct iopt_pages \*pages; \
	struct iopt_area \*area; struct list_head next; \
	unsigned long start_byte; unsigned long length; };

quiet_cmd_luo_pages_list = CHECK   $<
      cmd_luo_pages_list = \
	if ! tr -s '[:space:]' ' ' < $< | grep -q '$(luo_pages_list)'; then \
		echo "struct iopt_pages_list is another in this kernel: adapt luo/handlers/iommu/glue.c" >&2; \
		false; \
	fi; touch $@

$(obj)/.luo_pages_list_checked: $(srctree)/drivers/iommu/iommufd/io_pagetable.c FORCE
	$(call if_changed,luo_pages_list)

targets += .luo_pages_list_checked
$(obj)/$(luo_iommufd): $(obj)/.luo_pages_list_checked
