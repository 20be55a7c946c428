// SPDX-License-Identifier: GPL-2.0

/*
 * A handler that fails on request, for tests of the orchestrator.
 *
 * Each open file of /dev/luo_test holds one 64-bit number, which survives a
 * live update: preserve hands over the number itself. Module parameters decide
 * which callbacks fail, and every callback leaves a line in the kernel's log,
 * so that a test can tell in which order they came.
 *
 * It is in C on purpose: a handler that knows nothing but <linux/liveupdate.h>
 * has to work on the Rust core.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/anon_inodes.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/liveupdate.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>

static int preserve_errno;
module_param(preserve_errno, int, 0644);
MODULE_PARM_DESC(preserve_errno, "what preserve returns");

static int freeze_errno;
module_param(freeze_errno, int, 0644);
MODULE_PARM_DESC(freeze_errno, "what freeze returns for an odd number");

static int retrieve_errno;
module_param(retrieve_errno, int, 0644);
MODULE_PARM_DESC(retrieve_errno, "what retrieve returns");

static bool refuse_finish;
module_param(refuse_finish, bool, 0644);
MODULE_PARM_DESC(refuse_finish, "whether can_finish says no");

static unsigned int init_ms;
module_param(init_ms, uint, 0444);
MODULE_PARM_DESC(init_ms, "how long init takes, in milliseconds");

static int init_errno;
module_param(init_errno, int, 0444);
MODULE_PARM_DESC(init_errno, "what init returns in the end");

static ssize_t luo_test_read(struct file *file, char __user *to, size_t size,
			     loff_t *pos)
{
	loff_t zero = 0;

	return simple_read_from_buffer(to, size, &zero, file->private_data,
				       sizeof(u64));
}

static ssize_t luo_test_write(struct file *file, const char __user *from,
			      size_t size, loff_t *pos)
{
	loff_t zero = 0;

	return simple_write_to_buffer(file->private_data, sizeof(u64), &zero,
				      from, size);
}

static int luo_test_open(struct inode *inode, struct file *file)
{
	file->private_data = kzalloc(sizeof(u64), GFP_KERNEL);
	return file->private_data ? 0 : -ENOMEM;
}

static int luo_test_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static const struct file_operations luo_test_fops = {
	.owner = THIS_MODULE,
	.open = luo_test_open,
	.release = luo_test_release,
	.read = luo_test_read,
	.write = luo_test_write,
	.llseek = noop_llseek,
};

static struct miscdevice luo_test_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "luo_test",
	.fops = &luo_test_fops,
};

static u64 number_of(struct liveupdate_file_op_args *args)
{
	return *(u64 *)args->file->private_data;
}

static bool luo_test_can_preserve(struct liveupdate_file_handler *handler,
				  struct file *file)
{
	return file->f_op == &luo_test_fops;
}

static int luo_test_preserve(struct liveupdate_file_op_args *args)
{
	pr_info("preserve %llu\n", number_of(args));
	if (preserve_errno)
		return preserve_errno;

	args->serialized_data = number_of(args);
	return 0;
}

static void luo_test_unpreserve(struct liveupdate_file_op_args *args)
{
	pr_info("unpreserve %llu\n", number_of(args));
}

static int luo_test_freeze(struct liveupdate_file_op_args *args)
{
	pr_info("freeze %llu\n", number_of(args));
	if (freeze_errno && number_of(args) % 2)
		return freeze_errno;

	args->serialized_data = number_of(args);
	return 0;
}

static void luo_test_unfreeze(struct liveupdate_file_op_args *args)
{
	pr_info("unfreeze %llu\n", number_of(args));
}

static int luo_test_retrieve(struct liveupdate_file_op_args *args)
{
	u64 *number;

	pr_info("retrieve %llu\n", args->serialized_data);
	if (retrieve_errno)
		return retrieve_errno;

	number = kmemdup(&args->serialized_data, sizeof(*number), GFP_KERNEL);
	if (!number)
		return -ENOMEM;

	args->file = anon_inode_getfile("[luo_test]", &luo_test_fops, number,
					O_RDWR);
	if (IS_ERR(args->file)) {
		kfree(number);
		return PTR_ERR(args->file);
	}

	return 0;
}

static bool luo_test_can_finish(struct liveupdate_file_op_args *args)
{
	pr_info("can_finish %llu\n", args->serialized_data);
	return !refuse_finish;
}

static void luo_test_finish(struct liveupdate_file_op_args *args)
{
	pr_info("finish %llu status %d\n", args->serialized_data,
		args->retrieve_status);
}

static const struct liveupdate_file_ops luo_test_ops = {
	.can_preserve = luo_test_can_preserve,
	.preserve = luo_test_preserve,
	.unpreserve = luo_test_unpreserve,
	.freeze = luo_test_freeze,
	.unfreeze = luo_test_unfreeze,
	.retrieve = luo_test_retrieve,
	.can_finish = luo_test_can_finish,
	.finish = luo_test_finish,
	.owner = THIS_MODULE,
};

static struct liveupdate_file_handler luo_test_handler = {
	.ops = &luo_test_ops,
	.compatible = "luo-test-v1",
};

static int __init luo_test_init(void)
{
	int err;

	err = liveupdate_register_file_handler(&luo_test_handler);
	if (err)
		return err;

	err = misc_register(&luo_test_device);
	if (err)
		goto unregister;

	msleep(init_ms);
	if (!init_errno)
		return 0;

	err = init_errno;
	misc_deregister(&luo_test_device);
unregister:
	liveupdate_unregister_file_handler(&luo_test_handler);
	return err;
}
module_init(luo_test_init);

static void __exit luo_test_exit(void)
{
	misc_deregister(&luo_test_device);
	liveupdate_unregister_file_handler(&luo_test_handler);
}
module_exit(luo_test_exit);

MODULE_ALIAS("luo:luo-test-v1");
MODULE_DESCRIPTION("Live update test handler");
MODULE_LICENSE("GPL");
