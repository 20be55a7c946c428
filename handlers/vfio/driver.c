// SPDX-License-Identifier: GPL-2.0

/*
 * luo-vfio-pci, a variant of vfio-pci whose devices can go through a live
 * update.
 *
 * It differs from vfio-pci in two things. A device can be shut: then calls and
 * page faults of its user fail, without harm to the device, until it is unshut.
 * And a device that came from the previous kernel is not registered with VFIO
 * before its owner retrieves it, is given to nobody else then, and is not reset
 * when it is opened for the first time.
 *
 * What a device that came over is kept for is known to luo_pci, whose lock
 * decides between an owner who binds it and a session that ends.
 */

#include <linux/anon_inodes.h>
#include <linux/atomic.h>
#include <linux/cdev.h>
#include <linux/cleanup.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iommufd.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>

#include <drivers/iommu/iommufd/iommufd_private.h>
#include <drivers/vfio/vfio.h>

#include "driver.h"
#include "pci/pci.h"

struct luo_vfio_device {
	struct vfio_pci_core_device core;
	/* Calls and page faults that are under way; negative if it is shut. */
	atomic_t users;
	/* What the core does with mappings. */
	const struct vm_operations_struct *vm_ops;
	/* Whether VFIO knows the device. Protected by the device's lock. */
	bool registered;
	/*
	 * Whose the device is while it is LUO_PCI_RETRIEVED. Only compared: the
	 * session has the iommufd as long as that.
	 */
	const struct iommufd_ctx *owner;
	struct luo_vfio_setup setup;
	/* Whether the next attachment brings back bus mastering. */
	bool bus_master;
};

static struct luo_vfio_device *to_luo(struct vfio_device *vdev)
{
	return container_of(vdev, struct luo_vfio_device, core.vdev);
}

/* For a device that is bound. */
static struct luo_vfio_device *luo_vfio_from_pci(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);

	return to_luo(&core->vdev);
}

static bool luo_vfio_enter(struct luo_vfio_device *ldev)
{
	return atomic_inc_unless_negative(&ldev->users);
}

static void luo_vfio_leave(struct luo_vfio_device *ldev)
{
	/* What was done before is seen by whoever shuts the device. */
	atomic_fetch_dec_release(&ldev->users);
}

/* What @call says, if the device is not shut. */
#define luo_vfio_guarded(vdev, call)			\
({							\
	struct luo_vfio_device *ldev = to_luo(vdev);	\
	typeof(call) ret = -EBUSY;			\
							\
	if (luo_vfio_enter(ldev)) {			\
		ret = (call);				\
		luo_vfio_leave(ldev);			\
	}						\
	ret;						\
})

static long luo_vfio_ioctl(struct vfio_device *vdev, unsigned int cmd,
			   unsigned long arg)
{
	return luo_vfio_guarded(vdev, vfio_pci_core_ioctl(vdev, cmd, arg));
}

static int luo_vfio_feature(struct vfio_device *vdev, u32 flags,
			    void __user *arg, size_t argsz)
{
	return luo_vfio_guarded(vdev, vfio_pci_core_ioctl_feature(vdev, flags, arg, argsz));
}

static int luo_vfio_region_info(struct vfio_device *vdev,
				struct vfio_region_info *info,
				struct vfio_info_cap *caps)
{
	return luo_vfio_guarded(vdev, vfio_pci_ioctl_get_region_info(vdev, info, caps));
}

static ssize_t luo_vfio_read(struct vfio_device *vdev, char __user *buf,
			     size_t count, loff_t *pos)
{
	return luo_vfio_guarded(vdev, vfio_pci_core_read(vdev, buf, count, pos));
}

static ssize_t luo_vfio_write(struct vfio_device *vdev, const char __user *buf,
			      size_t count, loff_t *pos)
{
	return luo_vfio_guarded(vdev, vfio_pci_core_write(vdev, buf, count, pos));
}

static vm_fault_t luo_vfio_fault(struct vm_fault *vmf)
{
	struct vfio_pci_core_device *core = vmf->vma->vm_private_data;
	struct luo_vfio_device *ldev = to_luo(&core->vdev);
	vm_fault_t ret = VM_FAULT_SIGBUS;

	if (luo_vfio_enter(ldev)) {
		ret = READ_ONCE(ldev->vm_ops)->fault(vmf);
		luo_vfio_leave(ldev);
	}

	return ret;
}

#ifdef CONFIG_ARCH_SUPPORTS_HUGE_PFNMAP
static vm_fault_t luo_vfio_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct vfio_pci_core_device *core = vmf->vma->vm_private_data;
	struct luo_vfio_device *ldev = to_luo(&core->vdev);
	vm_fault_t ret = VM_FAULT_SIGBUS;

	if (luo_vfio_enter(ldev)) {
		ret = READ_ONCE(ldev->vm_ops)->huge_fault(vmf, order);
		luo_vfio_leave(ldev);
	}

	return ret;
}
#endif

static const struct vm_operations_struct luo_vfio_vm_ops = {
	.fault = luo_vfio_fault,
#ifdef CONFIG_ARCH_SUPPORTS_HUGE_PFNMAP
	.huge_fault = luo_vfio_huge_fault,
#endif
};

static int luo_vfio_mmap(struct vfio_device *vdev, struct vm_area_struct *vma)
{
	int err = luo_vfio_guarded(vdev, vfio_pci_core_mmap(vdev, vma));

	if (!err) {
		/* The same ones every time, as this driver adds no regions of its own. */
		WRITE_ONCE(to_luo(vdev)->vm_ops, vma->vm_ops);
		vma->vm_ops = &luo_vfio_vm_ops;
	}

	return err;
}

/* Only the iommufd that a device was retrieved with gets it. */
static int luo_vfio_bind_iommufd(struct vfio_device *vdev,
				 struct iommufd_ctx *ictx, u32 *id)
{
	struct luo_vfio_device *ldev = to_luo(vdev);

	if (luo_pci_kept_phase(ldev->core.pdev) == LUO_PCI_RETRIEVED && ictx != ldev->owner) {
		pci_notice_ratelimited(ldev->core.pdev, "the device is kept for its owner's iommufd: bind it to that\n");
		return -EBUSY;
	}

	return vfio_iommufd_physical_bind(vdev, ictx, id);
}

static int luo_vfio_attach_ioas(struct vfio_device *vdev, u32 *id)
{
	struct luo_vfio_device *ldev = to_luo(vdev);
	int err = -EBUSY;

	if (luo_vfio_enter(ldev)) {
		err = vfio_iommufd_physical_attach_ioas(vdev, id);
		/* Now what the device writes goes where its owner wants it. */
		if (!err && ldev->bus_master) {
			ldev->bus_master = false;
			pci_set_master(ldev->core.pdev);
		}
		luo_vfio_leave(ldev);
	}

	return err;
}

static int luo_vfio_pasid_attach_ioas(struct vfio_device *vdev, u32 pasid, u32 *id)
{
	return luo_vfio_guarded(vdev, vfio_iommufd_physical_pasid_attach_ioas(vdev, pasid, id));
}

static void luo_vfio_restore(struct luo_vfio_device *ldev)
{
	const u16 kept = PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INVALIDATE;
	struct pci_dev *pdev = ldev->core.pdev;
	u16 command;

	pci_write_config_byte(pdev, PCI_CACHE_LINE_SIZE, ldev->setup.cache_line);
	pci_write_config_byte(pdev, PCI_LATENCY_TIMER, ldev->setup.latency);
	pci_read_config_word(pdev, PCI_COMMAND, &command);
	command = (command & ~kept) | (ldev->setup.command & kept);
	pci_write_config_word(pdev, PCI_COMMAND, command);
	ldev->bus_master = ldev->setup.command & PCI_COMMAND_MASTER;
	/* What it has to say may come before anybody listens, which is when VFIO unmutes it. */
	if (ldev->core.pci_2_3)
		pci_intx(pdev, 0);
}

static int luo_vfio_open_device(struct vfio_device *vdev)
{
	struct luo_vfio_device *ldev = to_luo(vdev);
	struct vfio_pci_core_device *core = &ldev->core;
	enum luo_pci_phase phase = luo_pci_kept_phase(core->pdev);
	int err;

	switch (phase) {
	case LUO_PCI_FREE:
		break;
	/* VFIO does not know it. */
	case LUO_PCI_OWNED:
		return -EBUSY;
	case LUO_PCI_RETRIEVED:
		/* Without an iommufd it is by a group that it is opened. */
		if (!vdev->iommufd_device) {
			pci_notice_ratelimited(core->pdev, "the device is kept for its owner's iommufd\n");
			return -EBUSY;
		}
		/* In case that somebody wrote reset_method in sysfs. */
		luo_pci_kept_forbid_resets(core->pdev);
		break;
	case LUO_PCI_STALE:
		/* PCI would wait for it for a minute. */
		if (!pci_device_is_present(core->pdev)) {
			pci_notice_ratelimited(core->pdev, "the device does not answer, so it cannot be reset\n");
			return -EIO;
		}
		luo_pci_kept_allow_resets(core->pdev);
		break;
	}

	/* Resets the device, unless there is no way to. */
	err = vfio_pci_core_enable(core);
	if (!err && phase == LUO_PCI_STALE && !core->reset_works) {
		pci_notice_ratelimited(core->pdev, "the device is out of reach until the machine is reset: it may hold somebody's data, and cannot be reset\n");
		vfio_pci_core_disable(core);
		err = -EIO;
	}
	/* Meanwhile its session may have been finished. */
	if (!err && phase != LUO_PCI_FREE && !luo_pci_kept_let_go(core->pdev, phase)) {
		vfio_pci_core_disable(core);
		err = -EBUSY;
	}
	if (err) {
		if (phase == LUO_PCI_STALE)
			luo_pci_kept_forbid_resets(core->pdev);
		/* PCI unmutes what it enables. */
		if (phase != LUO_PCI_FREE)
			pci_intx(core->pdev, 0);
		return err;
	}

	if (phase == LUO_PCI_RETRIEVED)
		luo_vfio_restore(ldev);
	if (phase != LUO_PCI_FREE)
		core->reset_works = core->pdev->reset_methods[0];

	vfio_pci_core_finish_enable(core);
	return 0;
}

static void luo_vfio_close_device(struct vfio_device *vdev)
{
	to_luo(vdev)->bus_master = false;
	vfio_pci_core_close_device(vdev);
}

static const struct vfio_device_ops luo_vfio_ops = {
	.name			= LUO_PCI_DRIVER,
	.init			= vfio_pci_core_init_dev,
	.release		= vfio_pci_core_release_dev,
	.open_device		= luo_vfio_open_device,
	.close_device		= luo_vfio_close_device,
	.ioctl			= luo_vfio_ioctl,
	.get_region_info_caps	= luo_vfio_region_info,
	.device_feature		= luo_vfio_feature,
	.read			= luo_vfio_read,
	.write			= luo_vfio_write,
	.mmap			= luo_vfio_mmap,
	.request		= vfio_pci_core_request,
	.match			= vfio_pci_core_match,
	.match_token_uuid	= vfio_pci_core_match_token_uuid,
	.bind_iommufd		= luo_vfio_bind_iommufd,
	.unbind_iommufd		= vfio_iommufd_physical_unbind,
	.attach_ioas		= luo_vfio_attach_ioas,
	/* To detach cannot fail; it waits for the iommufd, which is frozen first. */
	.detach_ioas		= vfio_iommufd_physical_detach_ioas,
	.pasid_attach_ioas	= luo_vfio_pasid_attach_ioas,
	.pasid_detach_ioas	= vfio_iommufd_physical_pasid_detach_ioas,
};

/* Called with the device's lock held. */
static int luo_vfio_register(struct luo_vfio_device *ldev)
{
	int err = vfio_pci_core_register_device(&ldev->core);

	ldev->registered = !err;
	return err;
}

static int luo_vfio_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	enum luo_pci_phase phase = luo_pci_kept_phase(pdev);
	struct luo_vfio_device *ldev;
	int err = 0;

	ldev = vfio_alloc_device(luo_vfio_device, core.vdev, &pdev->dev, &luo_vfio_ops);
	if (IS_ERR(ldev))
		return PTR_ERR(ldev);

	atomic_set(&ldev->users, 0);
	dev_set_drvdata(&pdev->dev, &ldev->core);
	/* Otherwise it is registered when it is retrieved, which is under way if it is claimed. */
	if (phase == LUO_PCI_FREE || phase == LUO_PCI_STALE)
		err = luo_vfio_register(ldev);
	if (err)
		vfio_put_device(&ldev->core.vdev);
	return err;
}

static void luo_vfio_remove(struct pci_dev *pdev)
{
	struct luo_vfio_device *ldev = luo_vfio_from_pci(pdev);

	if (ldev->registered)
		vfio_pci_core_unregister_device(&ldev->core);
	vfio_put_device(&ldev->core.vdev);
}

static const struct pci_device_id luo_vfio_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(PCI_ANY_ID, PCI_ANY_ID) },
	{}
};
MODULE_DEVICE_TABLE(pci, luo_vfio_ids);

static struct pci_driver luo_vfio_driver = {
	.name			= LUO_PCI_DRIVER,
	.id_table		= luo_vfio_ids,
	.probe			= luo_vfio_probe,
	.remove			= luo_vfio_remove,
	.err_handler		= &vfio_pci_core_err_handlers,
	.driver_managed_dma	= true,
};

int luo_vfio_register_driver(void)
{
	return pci_register_driver(&luo_vfio_driver);
}

void luo_vfio_unregister_driver(void)
{
	pci_unregister_driver(&luo_vfio_driver);
}

/* The device behind a file, or NULL if it is no VFIO device's. */
struct vfio_device *luo_vfio_from_file(struct file *file)
{
	struct vfio_device_file *df = file->private_data;

	if (!vfio_file_is_valid(file) || vfio_file_is_group(file))
		return NULL;

	return df->device;
}

/* The PCI device behind it, if there is one. */
struct pci_dev *luo_vfio_pci_dev(struct vfio_device *vdev)
{
	return dev_is_pci(vdev->dev) ? to_pci_dev(vdev->dev) : NULL;
}

/* Whether it is bound to luo-vfio-pci. */
bool luo_vfio_is_ours(struct vfio_device *vdev)
{
	return vdev->ops == &luo_vfio_ops;
}

/* Whether a VFIO device's file is the device's own and not a group's. */
bool luo_vfio_is_cdev(struct file *file)
{
	struct vfio_device_file *df = file->private_data;

	return !df->group;
}

/* Whether there is nothing between the device and memory. */
bool luo_vfio_is_noiommu(struct vfio_device *vdev)
{
	return vfio_device_is_noiommu(vdev);
}

/*
 * The iommufd that a VFIO device's file is bound to, with a reference, or NULL.
 * A user can hold the lock as long as it likes, so it is only tried: -EBUSY.
 */
struct file *luo_vfio_get_iommufd(struct file *file)
{
	struct vfio_device_file *df = file->private_data;
	struct vfio_device *vdev = df->device;
	struct file *iommufd = NULL;

	if (!mutex_trylock(&vdev->dev_set->lock))
		return ERR_PTR(-EBUSY);
	if (df->access_granted && vdev->iommufd_device)
		iommufd = get_file(iommufd_device_to_ictx(vdev->iommufd_device)->file);
	mutex_unlock(&vdev->dev_set->lock);
	return iommufd;
}

/* Has calls and page faults fail from now on, if none is under way. */
bool luo_vfio_shut(struct vfio_device *vdev)
{
	return !atomic_cmpxchg(&to_luo(vdev)->users, 0, INT_MIN);
}

void luo_vfio_unshut(struct vfio_device *vdev)
{
	atomic_set_release(&to_luo(vdev)->users, 0);
}

/* For a device that is shut, so that nobody makes it busy. */
enum luo_vfio_busy luo_vfio_busy(struct vfio_device *vdev)
{
	struct vfio_pci_core_device *core = &to_luo(vdev)->core;

	/* Whoever unbinds it waits for its file, and the reboot for them. */
	if (!device_trylock(vdev->dev))
		return LUO_VFIO_LOCKED;
	device_unlock(vdev->dev);
	if (core->irq_type != VFIO_PCI_NUM_IRQS)
		return LUO_VFIO_INTERRUPTS;
	if (core->ioeventfds_nr)
		return LUO_VFIO_IOEVENTFDS;
	if (!list_empty(&core->dmabufs))
		return LUO_VFIO_DMABUFS;
	if (core->pm_runtime_engaged || core->pdev->current_state != PCI_D0)
		return LUO_VFIO_ASLEEP;
	return LUO_VFIO_IDLE;
}

/*
 * Takes the device's registers out of all address spaces, if that can be done
 * without waiting; says whether it was done.
 */
bool luo_vfio_try_unmap(struct vfio_device *vdev)
{
	return luo_pci_try_unmap(vdev->inode->i_mapping);
}

static const struct file_operations luo_vfio_no_fops = {
	.owner = THIS_MODULE,
};

/* Makes a new file what open(2) of the device's node would give. */
static int luo_vfio_open(struct vfio_device *vdev, struct file *file)
{
	const struct file_operations *fops = vdev->cdev.ops;
	struct inode *inode = file_inode(file);
	int err;

	inode->i_cdev = &vdev->cdev;
	err = fops->open(inode, file);
	inode->i_cdev = NULL;
	if (err)
		return err;

	/* Cannot fail: this module depends on the one that they are in. */
	replace_fops(file, fops_get(fops));
	file->f_mode |= FMODE_CAN_READ | FMODE_CAN_WRITE | FMODE_PREAD | FMODE_PWRITE;
	return 0;
}

/* Gives a kept device that the caller claimed to the owner of an iommufd. */
struct file *luo_vfio_retrieve(struct pci_dev *pdev, struct file *iommufd,
			       const struct luo_vfio_setup *setup)
{
	struct luo_vfio_device *ldev;
	struct iommufd_ctx *ictx;
	struct file *file;
	int err;

	/* In case that somebody unbound it, and wrote driver_override. */
	err = luo_pci_reserve(pdev) ?: device_attach(&pdev->dev);
	if (err < 0)
		return ERR_PTR(err);

	guard(device)(&pdev->dev);
	if (pdev->dev.driver != &luo_vfio_driver.driver)
		return ERR_PTR(-ENXIO);
	ldev = luo_vfio_from_pci(pdev);
	if (ldev->registered)
		return ERR_PTR(-EBUSY);

	ictx = iommufd_ctx_from_file(iommufd);
	if (IS_ERR(ictx))
		return ERR_CAST(ictx);
	ldev->owner = ictx;
	iommufd_ctx_put(ictx);

	ldev->setup = *setup;
	/* Before there is a node that somebody else could have open when it is unregistered. */
	file = anon_inode_create_getfile("[vfio-device]", &luo_vfio_no_fops, NULL, O_RDWR, NULL);
	if (IS_ERR(file))
		return file;

	err = luo_vfio_register(ldev) ?: luo_vfio_open(&ldev->core.vdev, file);
	if (err) {
		fput(file);
		return ERR_PTR(err);
	}

	return file;
}

MODULE_IMPORT_NS("IOMMUFD");
/* No device comes over without its iommufd. */
MODULE_SOFTDEP("pre: luo_iommu");
