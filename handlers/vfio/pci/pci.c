// SPDX-License-Identifier: GPL-2.0

/*
 * C helpers of luo_pci, and what only C can say for it: initcalls, notifiers,
 * exports. Built in.
 */

#include <linux/cleanup.h>
#include <linux/export.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kexec.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/pci.h>
#include <linux/pm_runtime.h>
#include <linux/reboot.h>
#include <linux/string.h>

#include <drivers/pci/pci.h>

#include "pci.h"

/* In Rust. */
bool luo_pci_start(void);
void luo_pci_added(struct pci_dev *pdev);
void luo_pci_removed(struct pci_dev *pdev);
void luo_pci_binds(struct pci_dev *pdev);
void luo_pci_kexec(void);

int luo_pci_segment(struct pci_dev *pdev)
{
	return pci_domain_nr(pdev->bus);
}

u8 luo_pci_bus(struct pci_dev *pdev)
{
	return pdev->bus->number;
}

/* Whether VFIO could have had it. */
bool luo_pci_is_endpoint(struct pci_dev *pdev)
{
	return pdev->hdr_type == PCI_HEADER_TYPE_NORMAL &&
	       pdev->class >> 16 != PCI_BASE_CLASS_BRIDGE;
}

bool luo_pci_is_virtual(struct pci_dev *pdev)
{
	return pdev->is_virtfn;
}

/* Whether a driver is bound, or about to be, that is not ours. */
bool luo_pci_is_claimed(struct pci_dev *pdev)
{
	const struct device_driver *driver = READ_ONCE(pdev->dev.driver);

	return driver && strcmp(driver->name, LUO_PCI_DRIVER);
}

int luo_pci_reserve(struct pci_dev *pdev)
{
	return device_set_driver_override(&pdev->dev, LUO_PCI_DRIVER);
}

/* Has the driver, or else one that matches now, start anew with the device. */
int luo_pci_reprobe(struct pci_dev *pdev)
{
	int err = device_reprobe(&pdev->dev);

	/* That no driver matches, or that its probe fails, is no error there. */
	return err ?: READ_ONCE(pdev->dev.driver) ? 0 : -ENODEV;
}

/* What sysfs calls one of a device's reset methods. */
const char *luo_pci_reset_name(u8 method)
{
	return pci_reset_fn_methods[method].name;
}

bool luo_pci_has_siblings(struct pci_dev *pdev)
{
	guard(rwsem_read)(&pci_bus_sem);
	return !list_is_singular(&pdev->bus->devices);
}

/* Whether a reset of the device's bus or slot resets others. */
bool luo_pci_shares_reset(struct pci_dev *pdev)
{
	return luo_pci_has_siblings(pdev) &&
	       (!pci_probe_reset_slot(pdev->slot) || !pci_probe_reset_bus(pdev->bus));
}

/* So that no method is found by who looks for one again, or resets the bus. */
#define LUO_PCI_NO_RESETS \
	(PCI_DEV_FLAGS_NO_FLR_RESET | PCI_DEV_FLAGS_NO_PM_RESET | PCI_DEV_FLAGS_NO_BUS_RESET)

void luo_pci_forbid_resets(struct pci_dev *pdev, struct luo_pci_resets *resets)
{
	memcpy(resets->methods, pdev->reset_methods, sizeof(resets->methods));
	memset(pdev->reset_methods, 0, sizeof(pdev->reset_methods));
	resets->flags = pdev->dev_flags & LUO_PCI_NO_RESETS;
	pdev->dev_flags |= LUO_PCI_NO_RESETS;
}

void luo_pci_allow_resets(struct pci_dev *pdev, const struct luo_pci_resets *resets)
{
	pdev->dev_flags &= ~LUO_PCI_NO_RESETS | resets->flags;
	memcpy(pdev->reset_methods, resets->methods, sizeof(resets->methods));
}

/*
 * unmap_mapping_range() for all of a device's mapping, if it need not wait; says
 * whether it need not. Modules cannot walk a mapping.
 */
bool luo_pci_try_unmap(struct address_space *mapping)
{
	struct vm_area_struct *vma;

	if (!i_mmap_trylock_read(mapping))
		return false;

	mapping_rmap_tree_foreach(vma, mapping, 0, ULONG_MAX)
		zap_special_vma_range(vma, vma->vm_start, vma->vm_end - vma->vm_start);
	i_mmap_unlock_read(mapping);
	return true;
}

void luo_pci_stay_awake(struct pci_dev *pdev)
{
	pm_runtime_get_noresume(&pdev->dev);
}

void luo_pci_may_sleep(struct pci_dev *pdev)
{
	pm_runtime_put(&pdev->dev);
}

static int luo_pci_bus_event(struct notifier_block *nb, unsigned long event,
			     void *device)
{
	struct pci_dev *pdev = to_pci_dev(device);

	switch (event) {
	/* Before any driver is asked. */
	case BUS_NOTIFY_ADD_DEVICE:
		luo_pci_added(pdev);
		break;
	case BUS_NOTIFY_REMOVED_DEVICE:
		luo_pci_removed(pdev);
		break;
	/* Before pci_match_device() has the last word on the driver. */
	case BUS_NOTIFY_BIND_DRIVER:
		luo_pci_binds(pdev);
		break;
	}

	return NOTIFY_DONE;
}

static struct notifier_block luo_pci_bus_notifier = {
	.notifier_call = luo_pci_bus_event,
};

static int luo_pci_reboot_event(struct notifier_block *nb, unsigned long event,
				void *unused)
{
	if (kexec_in_progress)
		luo_pci_kexec();

	return NOTIFY_DONE;
}

static struct notifier_block luo_pci_reboot_notifier = {
	.notifier_call = luo_pci_reboot_event,
};

/* After the bus is there, and before it is searched. */
static int __init luo_pci_init(void)
{
	int err;

	if (!luo_pci_start())
		return 0;

	err = bus_register_notifier(&pci_bus_type, &luo_pci_bus_notifier);
	err = err ?: register_reboot_notifier(&luo_pci_reboot_notifier);
	if (err)
		pr_emerg("luo_pci: preserved devices are not kept (%d): reset the machine\n", err);
	return err;
}
arch_initcall(luo_pci_init);

EXPORT_SYMBOL_FOR_MODULES(luo_pci_reserve, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_try_unmap, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_kept_phase, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_kept_allow_resets, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_kept_forbid_resets, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_kept_let_go, "luo_vfio");

/* If the compiler decides to inline what calls them. */
EXPORT_SYMBOL_FOR_MODULES(luo_pci_segment, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_bus, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_is_virtual, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_reset_name, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_has_siblings, "luo_vfio");
EXPORT_SYMBOL_FOR_MODULES(luo_pci_shares_reset, "luo_vfio");
