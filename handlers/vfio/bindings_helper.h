/* SPDX-License-Identifier: GPL-2.0 */

/* What bindgen reads for luo_vfio; everything here is for handlers/vfio/device.rs. */

#include "driver.h"
