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

void luo_memfd_account(struct file *file, long pages)
{
	shmem_recalc_inode(file_inode(file), pages, 0);
}

unsigned long luo_memfd_folio_pfn(struct folio *folio)
{
	return folio_pfn(folio);
}

unsigned long luo_memfd_folio_index(struct folio *folio)
{
	return folio->index;
}

unsigned long luo_memfd_folio_pages(struct folio *folio)
{
	return folio_nr_pages(folio);
}

struct folio *luo_memfd_pfn_folio(unsigned long pfn)
{
	return pfn_folio(pfn);
}

/*
 * Makes a folio one that reclaim keeps and that has valid content, whatever
 * happens to it later: both can change until the reboot, unnoticed.
 */
void luo_memfd_folio_settle(struct folio *folio)
{
	folio_lock(folio);
	folio_mark_dirty(folio);
	if (!folio_test_uptodate(folio)) {
		folio_zero_range(folio, 0, folio_size(folio));
		flush_dcache_folio(folio);
		folio_mark_uptodate(folio);
	}
	folio_unlock(folio);
}

/*
 * Puts a folio that nobody uses into the file, as its content from page @index
 * on. The caller keeps its reference.
 */
int luo_memfd_folio_insert(struct file *file, struct folio *folio,
			   unsigned long index, bool uptodate, bool dirty)
{
	struct inode *inode = file_inode(file);
	struct address_space *mapping = inode->i_mapping;
	gfp_t gfp = mapping_gfp_mask(mapping);
	int err;

	__folio_set_locked(folio);
	__folio_set_swapbacked(folio);

	err = mem_cgroup_charge(folio, NULL, gfp);
	if (err)
		goto out_unlock;

	err = shmem_add_to_page_cache(folio, mapping, index, NULL, gfp);
	if (err)
		goto out_unlock;

	if (uptodate)
		folio_mark_uptodate(folio);
	if (dirty)
		folio_mark_dirty(folio);

	err = shmem_inode_acct_blocks(inode, folio_nr_pages(folio));
	if (err) {
		filemap_remove_folio(folio);
		goto out_unlock;
	}

	folio_add_lru(folio);

out_unlock:
	folio_unlock(folio);
	return err;
}
