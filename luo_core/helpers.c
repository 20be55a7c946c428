// SPDX-License-Identifier: GPL-2.0

/* C helpers of luo_core: what is a macro or an inline function in C. */

#include <linux/anon_inodes.h>
#include <linux/cleanup.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/io.h>
#include <linux/kexec_handover.h>
#include <linux/kmod.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>

#include "helpers.h"

/*
 * Takes a reference to a module that has finished loading and is not being
 * unloaded. A module that is still in its init function can fail it and be
 * freed whatever its reference count says.
 */
bool luo_module_get_live(struct module *module)
{
#ifdef CONFIG_MODULES
	if (module && READ_ONCE(module->state) != MODULE_STATE_LIVE)
		return false;
#endif
	return try_module_get(module);
}

/* For one who has a reference already. */
void luo_module_get(struct module *module)
{
	__module_get(module);
}

void luo_module_put(struct module *module)
{
	module_put(module);
}

/*
 * Waits until userspace is done with it, whatever comes of it; returns false if
 * the task is being killed.
 */
bool luo_request_module(const char *alias)
{
	request_module("%s", alias);
	return !fatal_signal_pending(current);
}

/*
 * Whether the file is between its open and its release. Around both it can have
 * its operations without the private data that goes with them.
 */
bool luo_file_is_open(struct file *file)
{
	return (file->f_mode & FMODE_OPENED) && file_count(file);
}

/*
 * A file whose operations are in a module keeps that from being unloaded; but
 * only from when it is live, and only if the operations say so.
 */
struct file *luo_anon_file(const char *name, const struct file_operations *fops,
			   void *private, int flags)
{
	struct module *owner = fops->owner;
	struct file *file;

	if (owner ? !within_module((unsigned long)fops, owner) :
		    is_module_address((unsigned long)fops))
		return ERR_PTR(-EINVAL);
	if (!luo_module_get_live(owner))
		return ERR_PTR(-ENODEV);

	file = anon_inode_getfile(name, fops, private, flags);
	module_put(owner);
	return file;
}

phys_addr_t luo_virt_to_phys(void *mem)
{
	return virt_to_phys(mem);
}

void *luo_phys_to_virt(phys_addr_t phys)
{
	return phys_to_virt(phys);
}

/*
 * KHO's mark in page->private of the first page of each preserved allocation;
 * private to kernel/liveupdate/kexec_handover.c, and compared to it by Kbuild.
 */
#define KHO_PAGE_MAGIC 0x4b484f50U

union kho_page_info {
	unsigned long page_private;
	struct {
		unsigned int order;
		unsigned int magic;
	};
};

static bool is_preserved(phys_addr_t phys, size_t size)
{
	union kho_page_info info;
	struct page *page;

	if (!phys || !PAGE_ALIGNED(phys))
		return false;

	page = pfn_to_online_page(PHYS_PFN(phys));
	if (!page)
		return false;

	info.page_private = READ_ONCE(page->private);
	return info.magic == KHO_PAGE_MAGIC && info.order <= MAX_PAGE_ORDER &&
	       size <= PAGE_SIZE << info.order;
}

/*
 * Makes memory that the previous kernel preserved this kernel's own. Returns
 * NULL for any address that is not the start of such memory, or not any more,
 * or where less than @size bytes were preserved.
 */
struct folio *luo_kho_claim(phys_addr_t phys, size_t size)
{
	/*
	 * Two claims of one address must not both see KHO's mark; claims of
	 * different ones, by many sessions at a time, need not wait.
	 */
	static spinlock_t locks[64] = {
		[0 ... 63] = __SPIN_LOCK_UNLOCKED(locks),
	};

	guard(spinlock)(&locks[hash_64(PHYS_PFN(phys), 6)]);
	if (!is_preserved(phys, size))
		return NULL;

	return kho_restore_folio(phys);
}

void *luo_folio_address(struct folio *folio)
{
	return folio_address(folio);
}

void luo_folio_put(struct folio *folio)
{
	folio_put(folio);
}
