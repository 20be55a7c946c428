/* SPDX-License-Identifier: GPL-2.0 */

/* C helpers of luo_memfd: what is a macro, inline or private to mm/ in C. */

#ifndef _LUO_MEMFD_HELPERS_H
#define _LUO_MEMFD_HELPERS_H

#include <linux/types.h>

struct file;
struct folio;

bool luo_memfd_is_anonymous(struct file *file);
bool luo_memfd_is_shmem(struct file *file);
bool luo_memfd_is_hugetlb(struct file *file);
loff_t luo_memfd_size(struct file *file);
void luo_memfd_set_size(struct file *file, loff_t size);
void luo_memfd_lock(struct file *file);
void luo_memfd_unlock(struct file *file);
void luo_memfd_freeze(struct file *file, bool freeze);
int luo_memfd_account(struct file *file, long pages);

struct folio *luo_memfd_pfn_folio(unsigned long pfn);
unsigned long luo_memfd_folio_settle(struct folio *folio, unsigned long *index);
long luo_memfd_folio_insert(struct file *file, struct folio *folio,
			    unsigned long index, bool uptodate, bool dirty);

#endif
