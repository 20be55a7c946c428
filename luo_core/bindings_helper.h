/* SPDX-License-Identifier: GPL-2.0 */

/* What bindgen reads for luo_core; everything here is for luo_core/bindings.rs. */

#include <linux/anon_inodes.h>
#include <linux/kexec_handover.h>
#include <linux/kho/abi/kexec_handover.h>
#include <linux/liveupdate.h>
#include <linux/module.h>

#include "helpers.h"

#ifdef CONFIG_LIVEUPDATE_TEST
/* lib/tests/liveupdate.c: to be called for every handler. */
void liveupdate_test_register(struct liveupdate_file_handler *fh);
#endif
