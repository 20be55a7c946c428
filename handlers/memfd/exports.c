// SPDX-License-Identifier: GPL-2.0

/*
 * Exports, to luo_memfd and nobody else, what it calls of mm/. Built in, and
 * only if luo_memfd is a module.
 */

#include <linux/export.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/memfd.h>
#include <linux/pagemap.h>

#include <mm/internal.h>

#ifdef CONFIG_MEMCG
EXPORT_SYMBOL_FOR_MODULES(__mem_cgroup_charge, "luo_memfd");
#endif
EXPORT_SYMBOL_FOR_MODULES(memfd_add_seals, "luo_memfd");
EXPORT_SYMBOL_FOR_MODULES(memfd_alloc_file, "luo_memfd");
EXPORT_SYMBOL_FOR_MODULES(memfd_get_seals, "luo_memfd");
EXPORT_SYMBOL_FOR_MODULES(shmem_add_to_page_cache, "luo_memfd");
EXPORT_SYMBOL_FOR_MODULES(shmem_inode_acct_blocks, "luo_memfd");
EXPORT_SYMBOL_FOR_MODULES(shmem_recalc_inode, "luo_memfd");
