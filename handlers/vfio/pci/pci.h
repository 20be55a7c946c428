/* SPDX-License-Identifier: GPL-2.0 */

/* What luo_pci calls in C, and what luo_vfio calls in luo_pci; see pci.c and luo_pci.rs. */

#ifndef _LUO_PCI_H
#define _LUO_PCI_H

#include <linux/pci.h>
#include <linux/types.h>

/* The driver that preserved devices are for. */
#define LUO_PCI_DRIVER "luo-vfio-pci"

/* What of a device was there before it was kept from being reset. */
struct luo_pci_resets {
	u8 methods[PCI_NUM_RESET_METHODS];
	pci_dev_flags_t flags;
};

/* What a device is kept for. */
enum luo_pci_phase {
	/* It is not kept. */
	LUO_PCI_FREE,
	/* As it is, for its owner. */
	LUO_PCI_OWNED,
	/* As it is, for the owner who has its file. */
	LUO_PCI_RETRIEVED,
	/* It has to be reset before anybody uses it. */
	LUO_PCI_STALE,
};

int luo_pci_segment(struct pci_dev *pdev);
u8 luo_pci_bus(struct pci_dev *pdev);
bool luo_pci_is_endpoint(struct pci_dev *pdev);
bool luo_pci_is_virtual(struct pci_dev *pdev);
bool luo_pci_is_claimed(struct pci_dev *pdev);
int luo_pci_reprobe(struct pci_dev *pdev);
int luo_pci_reserve(struct pci_dev *pdev);
const char *luo_pci_reset_name(u8 method);
bool luo_pci_has_siblings(struct pci_dev *pdev);
bool luo_pci_shares_reset(struct pci_dev *pdev);
void luo_pci_forbid_resets(struct pci_dev *pdev, struct luo_pci_resets *resets);
void luo_pci_allow_resets(struct pci_dev *pdev, const struct luo_pci_resets *resets);
bool luo_pci_try_unmap(struct address_space *mapping);
void luo_pci_stay_awake(struct pci_dev *pdev);
void luo_pci_may_sleep(struct pci_dev *pdev);

/* In Rust; see luo_pci.rs. */
enum luo_pci_phase luo_pci_kept_phase(struct pci_dev *pdev);
void luo_pci_kept_allow_resets(struct pci_dev *pdev);
void luo_pci_kept_forbid_resets(struct pci_dev *pdev);
bool luo_pci_kept_let_go(struct pci_dev *pdev, enum luo_pci_phase phase);

#endif
