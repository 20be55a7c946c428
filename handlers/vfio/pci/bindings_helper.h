/* SPDX-License-Identifier: GPL-2.0 */

/* What bindgen reads for luo_pci; everything here is for handlers/vfio/pci/sys.rs. */

#include <linux/pci.h>

#include "pci.h"
