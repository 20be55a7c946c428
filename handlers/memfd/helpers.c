// SPDX-License-Identifier: GPL-2.0

/* C helpers of luo_memfd: what is a macro, inline or private to mm/ in C. */

#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>

#include <mm/internal.h>

#include "helpers.h"

/* Whether nothing but open files and mappings refers to the file. */
bool luo_memfd_is_anonymous(struct file *file)
{
	return !file_inode(file)->i_nlink;
}

bool luo_memfd_is_shmem(struct file *file)
{
	return shmem_file(file);
}

bool luo_memfd_is_hugetlb(struct file *file)
{
	return is_file_hugepages(file);
}

loff_t luo_memfd_size(struct file *file)
{
	return i_size_read(file_inode(file));
}

void luo_memfd_set_size(struct file *file, loff_t size)
{
	i_size_write(file_inode(file), size);
}

void luo_memfd_lock(struct file *file)
{
	inode_lock(file_inode(file));
}

void luo_memfd_unlock(struct file *file)
{
	inode_unlock(file_inode(file));
}

void luo_memfd_freeze(struct file *file, bool freeze)
{
	shmem_freeze(file_inode(file), freeze);
}

/*
 * Counts pages that were put into the file, all at once: one by one that costs
 * more than putting them in.
 */
int luo_memfd_account(struct file *file, long pages)
{
	struct inode *inode = file_inode(file);
	int err = shmem_inode_acct_blocks(inode, pages);

	if (!err)
		shmem_recalc_inode(inode, pages, 0);

	return err;
}

struct folio *luo_memfd_pfn_folio(unsigned long pfn)
{
	return pfn_folio(pfn);
}

/*
 * Makes a folio one that reclaim keeps and that has valid content, whatever
 * happens to it later: both can change until the reboot, unnoticed. Returns its
 * frame number, and its place in the file in @index.
 */
unsigned long luo_memfd_folio_settle(struct folio *folio, unsigned long *index)
{
	folio_lock(folio);
	if (!folio_test_dirty(folio))
		folio_mark_dirty(folio);
	if (!folio_test_uptodate(folio)) {
		folio_zero_range(folio, 0, folio_size(folio));
		flush_dcache_folio(folio);
		folio_mark_uptodate(folio);
	}
	folio_unlock(folio);

	*index = folio->index;
	return folio_pfn(folio);
}

/*
 * Puts a folio that nobody uses into the file, as its content from page @index
 * on, and returns how many pages it has. The caller keeps its reference, and
 * accounts for the pages.
 */
long luo_memfd_folio_insert(struct file *file, struct folio *folio,
			    unsigned long index, bool uptodate, bool dirty)
{
	struct address_space *mapping = file->f_mapping;
	gfp_t gfp = mapping_gfp_mask(mapping);
	long pages = folio_nr_pages(folio);
	int err;

	if (!IS_ALIGNED(index, pages))
		return -EINVAL;

	__folio_set_locked(folio);
	__folio_set_swapbacked(folio);

	err = mem_cgroup_charge(folio, NULL, gfp);
	if (!err)
		err = shmem_add_to_page_cache(folio, mapping, index, NULL, gfp);
	if (!err) {
		if (uptodate)
			folio_mark_uptodate(folio);
		if (dirty)
			folio_mark_dirty(folio);
		folio_add_lru(folio);
	}

	folio_unlock(folio);
	return err ?: pages;
}
