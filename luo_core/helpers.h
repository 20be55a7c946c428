/* SPDX-License-Identifier: GPL-2.0 */

/* C helpers of luo_core: what is a macro or an inline function in C. */

#ifndef _LUO_HELPERS_H
#define _LUO_HELPERS_H

#include <linux/types.h>

struct folio;
struct module;

bool luo_module_get_live(struct module *module);
void luo_request_module(const char *alias);
struct folio *luo_kho_claim(phys_addr_t phys, size_t size);
void *luo_folio_address(struct folio *folio);
void luo_folio_put(struct folio *folio);
phys_addr_t luo_virt_to_phys(void *mem);
void *luo_phys_to_virt(phys_addr_t phys);

#endif
