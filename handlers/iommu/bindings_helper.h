/* SPDX-License-Identifier: GPL-2.0 */

/* What bindgen reads for luo_iommu; everything here is for handlers/iommu/iommufd.rs. */

#include "glue.h"
