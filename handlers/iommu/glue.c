// SPDX-License-Identifier: GPL-2.0

/*
 * What luo_iommu needs of iommufd, as a part of iommufd: its structures and
 * functions are private to it. The policy is in luo_iommu; here is one small
 * function for each thing that it does with an iommufd.
 *
 * This relies on, in drivers/iommu/iommufd:
 *
 * Areas. One with num_locks is not unmapped, and one with num_accesses is not
 * split, so one with both stays, as it is. These change under iova_rwsem, held
 * for reading with pages->mutex or for writing. One without pages, or with
 * prevent_access, is just being mapped or unmapped. What the mapping and its
 * pages are does not change.
 *
 * Objects. One with more users than one is not destroyed. The array gives up
 * its own user, and the object, under its lock. xa_alloc() gives the lowest id,
 * and an id is reserved by a zero entry until the object is finalized.
 *
 * Locks. Whoever maps, unmaps or sets an option of an IOAS takes its iova_rwsem
 * for writing. IOMMU_IOAS_ALLOC and IOMMU_IOAS_CHANGE_PROCESS take
 * ioas_creation_lock. vfio_ioas changes under the lock of the array.
 *
 * Mapping. iopt_map_pages() takes a list of struct iopt_pages_list, which only
 * io_pagetable.c defines, and leaves on it what it did not map. The structure is
 * repeated here, and iommufd.mk checks that it is the same. Pages belong to
 * current->mm, and how they are accounted can be set until they are mapped.
 *
 * Files. An open iommufd keeps its context in private_data, and the context
 * points back to the file. To open and to release does nothing else to a file,
 * and ignores the inode. iommufd_global_device() is the misc device.
 */

#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <linux/miscdevice.h>
#include <linux/shmem_fs.h>

#include <drivers/iommu/iommufd/io_pagetable.h>
#include <drivers/iommu/iommufd/iommufd_private.h>

#include "glue.h"

#define EXPORT_LUO(name) EXPORT_SYMBOL_FOR_MODULES(name, "luo_iommu")

/* They are handed over as numbers. */
static_assert(IOPT_PAGES_ACCOUNT_NONE == 0);
static_assert(IOPT_PAGES_ACCOUNT_USER == 1);
static_assert(IOPT_PAGES_ACCOUNT_MM == 2);
static_assert(IOPT_PAGES_ACCOUNT_MODE_NUM == 3);

/* The context of an iommufd; NULL if @file is another file. */
struct iommufd_ctx *luo_iommufd_ctx(struct file *file)
{
	struct iommufd_ctx *ictx = iommufd_ctx_from_file(file);

	if (IS_ERR(ictx))
		return NULL;
	iommufd_ctx_put(ictx);
	return ictx;
}
EXPORT_LUO(luo_iommufd_ctx);

/* Whether @file is a memfd that can be preserved, or as nameless as one. */
bool luo_iommufd_is_memory(struct file *file)
{
	return shmem_file(file) && !file_inode(file)->i_nlink;
}
EXPORT_LUO(luo_iommufd_is_memory);

/* Whether new mappings are accounted to a process, and not to a user. */
bool luo_iommufd_accounts_process(struct iommufd_ctx *ictx)
{
	return ictx->account_mode == IOPT_PAGES_ACCOUNT_MM;
}
EXPORT_LUO(luo_iommufd_accounts_process);

/*
 * Whether VFIO's container ioctls have something to work on: the IOAS @id, or
 * devices without an IOMMU.
 */
bool luo_iommufd_container(struct iommufd_ctx *ictx, u32 *id)
{
	bool ret;

	xa_lock(&ictx->objects);
	ret = ictx->vfio_ioas || ictx->no_iommu_mode;
	*id = ictx->vfio_ioas ? ictx->vfio_ioas->obj.id : 0;
	xa_unlock(&ictx->objects);

	return ret;
}
EXPORT_LUO(luo_iommufd_container);

/*
 * The object with the smallest id from *@id on, which is its id then. An IOAS is
 * stored in @ioas, with a user more.
 */
enum luo_iommufd_object luo_iommufd_next(struct iommufd_ctx *ictx, u32 *id,
					 struct iommufd_ioas **ioas)
{
	enum luo_iommufd_object ret = LUO_IOMMUFD_NONE;
	struct iommufd_object *obj;
	unsigned long index = *id;

	xa_lock(&ictx->objects);
	obj = xa_find(&ictx->objects, &index, U32_MAX, XA_PRESENT);
	if (!obj)
		goto unlock;

	*id = index;
	switch (obj->type) {
	case IOMMUFD_OBJ_IOAS:
		refcount_inc(&obj->users);
		*ioas = container_of(obj, struct iommufd_ioas, obj);
		ret = LUO_IOMMUFD_IOAS;
		break;
	case IOMMUFD_OBJ_DEVICE:
	case IOMMUFD_OBJ_ACCESS:
		ret = LUO_IOMMUFD_COMES_BACK;
		break;
	case IOMMUFD_OBJ_HWPT_PAGING:
		ret = container_of(obj, struct iommufd_hwpt_paging,
				   common.obj)->auto_domain ?
			      LUO_IOMMUFD_COMES_BACK :
			      LUO_IOMMUFD_LOST;
		break;
	default:
		ret = LUO_IOMMUFD_LOST;
	}
unlock:
	xa_unlock(&ictx->objects);
	return ret;
}
EXPORT_LUO(luo_iommufd_next);

/*
 * Keeps IOMMU_IOAS_ALLOC and IOMMU_IOAS_CHANGE_PROCESS waiting until
 * luo_iommufd_unhold(), by the same task, unless one is just being done. To lockdep a hold is no lock: it may end with
 * the machine, and there can be more than it can count.
 */
bool luo_iommufd_hold(struct iommufd_ctx *ictx)
{
	if (!down_write_trylock(&ictx->ioas_creation_lock))
		return false;
	rwsem_release(&ictx->ioas_creation_lock.dep_map, _THIS_IP_);
	return true;
}
EXPORT_LUO(luo_iommufd_hold);

void luo_iommufd_unhold(struct iommufd_ctx *ictx)
{
	rwsem_acquire(&ictx->ioas_creation_lock.dep_map, 0, 1, _THIS_IP_);
	up_write(&ictx->ioas_creation_lock);
}
EXPORT_LUO(luo_iommufd_unhold);

/* Gives up the user that luo_iommufd_next() made. */
void luo_iommufd_ioas_put(struct iommufd_ioas *ioas)
{
	refcount_dec(&ioas->obj.users);
}
EXPORT_LUO(luo_iommufd_ioas_put);

bool luo_iommufd_ioas_huge_pages(struct iommufd_ioas *ioas)
{
	lockdep_assert_held(&ioas->iopt.iova_rwsem);

	return !ioas->iopt.disable_large_pages;
}
EXPORT_LUO(luo_iommufd_ioas_huge_pages);

void luo_iommufd_ioas_lock(struct iommufd_ioas *ioas)
{
	down_write(&ioas->iopt.iova_rwsem);
}
EXPORT_LUO(luo_iommufd_ioas_lock);

bool luo_iommufd_ioas_trylock(struct iommufd_ioas *ioas)
{
	return down_write_trylock(&ioas->iopt.iova_rwsem);
}
EXPORT_LUO(luo_iommufd_ioas_trylock);

void luo_iommufd_ioas_unlock(struct iommufd_ioas *ioas)
{
	up_write(&ioas->iopt.iova_rwsem);
}
EXPORT_LUO(luo_iommufd_ioas_unlock);

/*
 * Turns the lock into a hold as luo_iommufd_hold() does. Nobody can change what
 * is mapped. Drivers can use it, until somebody waits to change it.
 */
void luo_iommufd_ioas_hold(struct iommufd_ioas *ioas)
{
	downgrade_write(&ioas->iopt.iova_rwsem);
	rwsem_release(&ioas->iopt.iova_rwsem.dep_map, _THIS_IP_);
}
EXPORT_LUO(luo_iommufd_ioas_hold);

void luo_iommufd_ioas_unhold(struct iommufd_ioas *ioas)
{
	rwsem_acquire_read(&ioas->iopt.iova_rwsem.dep_map, 0, 1, _THIS_IP_);
	up_read(&ioas->iopt.iova_rwsem);
}
EXPORT_LUO(luo_iommufd_ioas_unhold);

/* The allowed range behind @allowed, the first one if that is NULL, or NULL. */
struct iopt_allowed *luo_iommufd_next_allowed(struct iommufd_ioas *ioas,
					      struct iopt_allowed *allowed,
					      unsigned long *start,
					      unsigned long *last)
{
	allowed = allowed ? iopt_allowed_iter_next(allowed, 0, ULONG_MAX) :
			    iopt_allowed_iter_first(&ioas->iopt, 0, ULONG_MAX);
	if (allowed) {
		*start = allowed->node.start;
		*last = allowed->node.last;
	}
	return allowed;
}
EXPORT_LUO(luo_iommufd_next_allowed);

/* The area behind @area, the first one if that is NULL, or NULL. */
struct iopt_area *luo_iommufd_next_area(struct iommufd_ioas *ioas,
					struct iopt_area *area)
{
	return area ? iopt_area_iter_next(area, 0, ULONG_MAX) :
		      iopt_area_iter_first(&ioas->iopt, 0, ULONG_MAX);
}
EXPORT_LUO(luo_iommufd_next_area);

/* Whether an area is not just being mapped or unmapped. */
bool luo_iommufd_area_is_settled(struct iopt_area *area)
{
	lockdep_assert_held(&area->iopt->iova_rwsem);

	return area->pages && !area->prevent_access;
}
EXPORT_LUO(luo_iommufd_area_is_settled);

/*
 * Describes an area of a locked IOAS. Its IOVA and length are stored in any
 * case. Fails with -EBUSY if it is just being mapped or unmapped, and with
 * -EOPNOTSUPP if it is not of a file.
 */
int luo_iommufd_area_mapping(struct iopt_area *area,
			     struct luo_iommufd_mapping *mapping)
{
	struct iopt_pages *pages = area->pages;

	lockdep_assert_held(&area->iopt->iova_rwsem);

	mapping->iova = iopt_area_iova(area);
	mapping->length = iopt_area_length(area);
	if (!luo_iommufd_area_is_settled(area))
		return -EBUSY;
	if (pages->type != IOPT_ADDRESS_FILE ||
	    area->iommu_prot & ~(IOMMU_READ | IOMMU_WRITE | IOMMU_CACHE))
		return -EOPNOTSUPP;

	mapping->start = iopt_area_start_byte(area, mapping->iova);
	mapping->pages = pages;
	mapping->readable = area->iommu_prot & IOMMU_READ;
	mapping->writeable = area->iommu_prot & IOMMU_WRITE;
	mapping->file = pages->file;
	mapping->file_start = pages->start;
	mapping->file_length = pages->npages * PAGE_SIZE;
	mapping->pages_writable = pages->writable;
	mapping->account_mode = pages->account_mode;
	return 0;
}
EXPORT_LUO(luo_iommufd_area_mapping);

/* Has nobody unmap or split a settled area of a locked IOAS. */
void luo_iommufd_area_pin(struct iopt_area *area)
{
	lockdep_assert_held_write(&area->iopt->iova_rwsem);

	area->num_accesses++;
	area->num_locks++;
}
EXPORT_LUO(luo_iommufd_area_pin);

void luo_iommufd_area_unpin(struct iopt_area *area)
{
	lockdep_assert_held_write(&area->iopt->iova_rwsem);

	area->num_locks--;
	area->num_accesses--;
}
EXPORT_LUO(luo_iommufd_area_unpin);

/* A new iommufd, as if it were opened, but without a device node. */
struct file *luo_iommufd_create(bool account_process)
{
	struct miscdevice *misc = dev_get_drvdata(iommufd_global_device());
	/* Once there is a file with these operations, it has to have a context. */
	struct file opened = {};
	struct iommufd_ctx *ictx;
	struct file *file;
	int err;

	err = misc->fops->open(NULL, &opened);
	if (err)
		return ERR_PTR(err);

	ictx = opened.private_data;
	file = anon_inode_getfile("[iommufd]", misc->fops, ictx, O_RDWR);
	if (IS_ERR(file)) {
		misc->fops->release(NULL, &opened);
		return file;
	}
	ictx->file = file;
	if (account_process)
		ictx->account_mode = IOPT_PAGES_ACCOUNT_MM;
	return file;
}
EXPORT_LUO(luo_iommufd_create);

/*
 * Makes an IOAS of this id in an iommufd that nobody else has yet, and which
 * keeps it. Fails with -EBUSY if the id is taken.
 */
struct iommufd_ioas *luo_iommufd_ioas_create(struct iommufd_ctx *ictx, u32 id)
{
	struct iommufd_ioas *ioas = iommufd_ioas_alloc(ictx);
	int err;

	if (IS_ERR(ioas))
		return ioas;

	/* It has the lowest free id. */
	if (ioas->obj.id != id) {
		err = xa_insert(&ictx->objects, id, XA_ZERO_ENTRY,
				GFP_KERNEL_ACCOUNT);
		if (err) {
			iommufd_object_abort_and_destroy(ictx, &ioas->obj);
			return ERR_PTR(err);
		}
		xa_release(&ictx->objects, ioas->obj.id);
		ioas->obj.id = id;
	}
	iommufd_object_finalize(ictx, &ioas->obj);
	return ioas;
}
EXPORT_LUO(luo_iommufd_ioas_create);

int luo_iommufd_ioas_no_huge_pages(struct iommufd_ioas *ioas)
{
	return iopt_disable_large_pages(&ioas->iopt);
}
EXPORT_LUO(luo_iommufd_ioas_no_huge_pages);

/*
 * Adds an allowed range to an IOAS that has no device yet, so that no range is
 * reserved. Fails with -EINVAL if it is none or overlaps another.
 */
int luo_iommufd_ioas_allow(struct iommufd_ioas *ioas, unsigned long start,
			   unsigned long last)
{
	struct io_pagetable *iopt = &ioas->iopt;
	struct iopt_allowed *allowed;
	int err = 0;

	if (start >= last)
		return -EINVAL;
	allowed = kzalloc_obj(*allowed, GFP_KERNEL_ACCOUNT);
	if (!allowed)
		return -ENOMEM;
	allowed->node.start = start;
	allowed->node.last = last;

	down_write(&iopt->iova_rwsem);
	if (iopt_allowed_iter_first(iopt, start, last))
		err = -EINVAL;
	else
		interval_tree_insert(&allowed->node, &iopt->allowed_itree);
	up_write(&iopt->iova_rwsem);

	if (err)
		kfree(allowed);
	return err;
}
EXPORT_LUO(luo_iommufd_ioas_allow);

/* A piece of a file, in whole pages, that can be mapped. */
struct iopt_pages *luo_iommufd_pages_create(struct file *file,
					    unsigned long start,
					    unsigned long length,
					    bool writable, u8 account_mode)
{
	struct iopt_pages *pages;

	pages = iopt_alloc_file_pages(file, 0, start, length, writable);
	if (!IS_ERR(pages))
		pages->account_mode = account_mode;
	return pages;
}
EXPORT_LUO(luo_iommufd_pages_create);

void luo_iommufd_pages_put(struct iopt_pages *pages)
{
	iopt_put_pages(pages);
}
EXPORT_LUO(luo_iommufd_pages_put);

struct iopt_pages_list {
	struct iopt_pages *pages;
	struct iopt_area *area;
	struct list_head next;
	unsigned long start_byte;
	unsigned long length;
};

/*
 * Maps @length bytes of @pages from @start on. The caller has checked that they
 * are there.
 */
int luo_iommufd_ioas_map(struct iommufd_ioas *ioas, unsigned long iova,
			 unsigned long length, unsigned long start,
			 bool readable, bool writeable,
			 struct iopt_pages *pages)
{
	struct iopt_pages_list *elm;
	int prot = IOMMU_CACHE;
	LIST_HEAD(list);
	int err;

	elm = kzalloc_obj(*elm, GFP_KERNEL_ACCOUNT);
	if (!elm)
		return -ENOMEM;
	kref_get(&pages->kref);
	elm->pages = pages;
	elm->start_byte = start;
	elm->length = length;
	list_add(&elm->next, &list);

	if (readable)
		prot |= IOMMU_READ;
	if (writeable)
		prot |= IOMMU_WRITE;
	err = iopt_map_pages(&ioas->iopt, &list, length, &iova, prot, 0);
	/* What was mapped is not on it any more. */
	iopt_free_pages_list(&list);
	return err;
}
EXPORT_LUO(luo_iommufd_ioas_map);
