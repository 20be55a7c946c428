/* SPDX-License-Identifier: GPL-2.0 */

/* The driver luo-vfio-pci, and what the rest of luo_vfio wants of VFIO; see driver.c. */

#ifndef _LUO_VFIO_DRIVER_H
#define _LUO_VFIO_DRIVER_H

#include <linux/types.h>

struct file;
struct pci_dev;
struct vfio_device;

/* What keeps a device from being frozen. */
enum luo_vfio_busy {
	LUO_VFIO_IDLE,
	LUO_VFIO_INTERRUPTS,
	LUO_VFIO_IOEVENTFDS,
	LUO_VFIO_DMABUFS,
	LUO_VFIO_ASLEEP,
	LUO_VFIO_LOCKED,
};

/* Registers of the configuration space that a retrieved device gets back. */
struct luo_vfio_setup {
	u16 command;
	u8 cache_line;
	u8 latency;
};

int luo_vfio_register_driver(void);
void luo_vfio_unregister_driver(void);

struct vfio_device *luo_vfio_from_file(struct file *file);
struct pci_dev *luo_vfio_pci_dev(struct vfio_device *vdev);
bool luo_vfio_is_ours(struct vfio_device *vdev);
bool luo_vfio_is_noiommu(struct vfio_device *vdev);
bool luo_vfio_is_cdev(struct file *file);
struct file *luo_vfio_get_iommufd(struct file *file);

bool luo_vfio_shut(struct vfio_device *vdev);
void luo_vfio_unshut(struct vfio_device *vdev);
enum luo_vfio_busy luo_vfio_busy(struct vfio_device *vdev);
bool luo_vfio_try_unmap(struct vfio_device *vdev);

struct file *luo_vfio_retrieve(struct pci_dev *pdev, struct file *iommufd,
			       const struct luo_vfio_setup *setup);

#endif
