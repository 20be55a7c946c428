/* SPDX-License-Identifier: GPL-2.0 */

/* C helpers of luo_core: what is a macro or an inline function in C. */

#ifndef _LUO_HELPERS_H
#define _LUO_HELPERS_H

#include <linux/types.h>

struct file;
struct file_operations;
struct folio;
struct module;

bool luo_module_get_live(struct module *module);
void luo_module_get(struct module *module);
void luo_module_put(struct module *module);
bool luo_request_module(const char *alias);
bool luo_file_is_open(struct file *file);
struct file *luo_anon_file(const char *name, const struct file_operations *fops,
			   void *private, int flags);
struct folio *luo_kho_claim(phys_addr_t phys, size_t size);
void *luo_folio_address(struct folio *folio);
void luo_folio_put(struct folio *folio);
phys_addr_t luo_virt_to_phys(void *mem);
void *luo_phys_to_virt(phys_addr_t phys);

#endif
