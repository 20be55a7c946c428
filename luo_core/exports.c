// SPDX-License-Identifier: GPL-2.0

/*
 * Lets modules call the core's Rust functions and those helpers that its
 * generic functions, which are compiled into the modules, call.
 */

#include <linux/export.h>

#include "helpers.h"

#define EXPORT_SYMBOL_RUST_GPL(sym) extern int sym; EXPORT_SYMBOL_GPL(sym)

#include "exports_generated.h"

EXPORT_SYMBOL_GPL(luo_kho_claim);
EXPORT_SYMBOL_GPL(luo_folio_address);
EXPORT_SYMBOL_GPL(luo_folio_put);
EXPORT_SYMBOL_GPL(luo_virt_to_phys);
EXPORT_SYMBOL_GPL(luo_phys_to_virt);
