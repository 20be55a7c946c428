/* SPDX-License-Identifier: GPL-2.0 */

/* What bindgen reads for luo_core; everything here is for luo_core/bindings.rs. */

#include <linux/anon_inodes.h>
#include <linux/kexec_handover.h>
#include <linux/kho/abi/kexec_handover.h>
#include <linux/liveupdate.h>

#include "helpers.h"
