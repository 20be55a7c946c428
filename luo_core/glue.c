// SPDX-License-Identifier: GPL-2.0

/*
 * What only C can say for luo_core: initcalls, the command line, exports.
 */

#include <linux/export.h>
#include <linux/init.h>
#include <linux/kstrtox.h>
#include <linux/liveupdate.h>

int luo_early_init(bool enabled);
int luo_late_init(void);

static bool luo_enabled __initdata;

static int __init luo_param(char *value)
{
	return kstrtobool(value, &luo_enabled);
}
early_param("liveupdate", luo_param);

static int __init luo_early(void)
{
	return luo_early_init(luo_enabled);
}
early_initcall(luo_early);

static int __init luo_late(void)
{
	return luo_late_init();
}
late_initcall(luo_late);

EXPORT_SYMBOL_GPL(liveupdate_enabled);
EXPORT_SYMBOL_GPL(liveupdate_register_file_handler);
EXPORT_SYMBOL_GPL(liveupdate_unregister_file_handler);
EXPORT_SYMBOL_GPL(liveupdate_register_flb);
EXPORT_SYMBOL_GPL(liveupdate_unregister_flb);
EXPORT_SYMBOL_GPL(liveupdate_flb_get_incoming);
EXPORT_SYMBOL_GPL(liveupdate_flb_put_incoming);
EXPORT_SYMBOL_GPL(liveupdate_flb_get_outgoing);
EXPORT_SYMBOL_GPL(liveupdate_flb_put_outgoing);
