// SPDX-License-Identifier: GPL-2.0

/*
 * A handler with bugs, to show that the debug kernel reports those of others.
 *
 * A file of /dev/luo_bug is preserved without an error, and on the way the bug
 * happens that the module parameter names. It is where one of ours would be:
 * in a callback, under the orchestrator's locks.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/liveupdate.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>

static char *what = "";
module_param(what, charp, 0444);
MODULE_PARM_DESC(what, "the bug: lockdep, kasan or leak");

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);

/* Two locks in both orders, which is a deadlock only with two at it. */
static noinline void luo_bug_lockdep(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);

	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

/* Memory is read after it was freed. */
static noinline void luo_bug_kasan(void)
{
	u64 *number = kzalloc(sizeof(*number), GFP_KERNEL);

	if (!number)
		return;

	kfree(number);
	pr_info("read %llu\n", READ_ONCE(*number));
}

/* Memory is forgotten, more than once in case the stack remembers the last. */
static noinline void luo_bug_leak(void)
{
	int i;

	for (i = 0; i < 4; i++) {
		void *memory = kzalloc(128, GFP_KERNEL);

		OPTIMIZER_HIDE_VAR(memory);
	}
}

static const struct file_operations luo_bug_fops = {
	.owner = THIS_MODULE,
};

static struct miscdevice luo_bug_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "luo_bug",
	.fops = &luo_bug_fops,
};

static bool luo_bug_can_preserve(struct liveupdate_file_handler *handler,
				 struct file *file)
{
	return file->f_op == &luo_bug_fops;
}

static int luo_bug_preserve(struct liveupdate_file_op_args *args)
{
	if (!strcmp(what, "lockdep"))
		luo_bug_lockdep();
	else if (!strcmp(what, "kasan"))
		luo_bug_kasan();
	else if (!strcmp(what, "leak"))
		luo_bug_leak();
	else
		return -EINVAL;

	return 0;
}

static void luo_bug_unpreserve(struct liveupdate_file_op_args *args)
{
}

static int luo_bug_retrieve(struct liveupdate_file_op_args *args)
{
	return -EOPNOTSUPP;
}

static void luo_bug_finish(struct liveupdate_file_op_args *args)
{
}

static const struct liveupdate_file_ops luo_bug_ops = {
	.can_preserve = luo_bug_can_preserve,
	.preserve = luo_bug_preserve,
	.unpreserve = luo_bug_unpreserve,
	.retrieve = luo_bug_retrieve,
	.finish = luo_bug_finish,
	.owner = THIS_MODULE,
};

static struct liveupdate_file_handler luo_bug_handler = {
	.ops = &luo_bug_ops,
	.compatible = "luo-bug-v1",
};

static int __init luo_bug_init(void)
{
	int err;

	err = liveupdate_register_file_handler(&luo_bug_handler);
	if (err)
		return err;

	err = misc_register(&luo_bug_device);
	if (err)
		liveupdate_unregister_file_handler(&luo_bug_handler);

	return err;
}
module_init(luo_bug_init);

static void __exit luo_bug_exit(void)
{
	misc_deregister(&luo_bug_device);
	liveupdate_unregister_file_handler(&luo_bug_handler);
}
module_exit(luo_bug_exit);

MODULE_DESCRIPTION("Live update handler with bugs");
MODULE_LICENSE("GPL");
