/* SPDX-License-Identifier: GPL-2.0 */

/* What bindgen reads for luo_memfd; everything here is for handlers/memfd/shmem.rs. */

#include <linux/kexec_handover.h>
#include <linux/memfd.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <uapi/linux/memfd.h>

#include "helpers.h"
