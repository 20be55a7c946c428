/* SPDX-License-Identifier: GPL-2.0 */

/*
 * What luo_iommu calls of iommufd; see glue.c for what each does. Nothing
 * here shows how iommufd keeps its objects.
 */

#ifndef _LUO_IOMMU_GLUE_H
#define _LUO_IOMMU_GLUE_H

#include <linux/types.h>

struct file;
struct iommufd_ctx;
struct iommufd_ioas;
struct iopt_allowed;
struct iopt_area;
struct iopt_pages;

/* What becomes of an iommufd's object in a live update. */
enum luo_iommufd_object {
	/* There is no further object. */
	LUO_IOMMUFD_NONE,
	/* It is an IOAS, and it is preserved. */
	LUO_IOMMUFD_IOAS,
	/* It comes back when a device is bound and attached again. */
	LUO_IOMMUFD_COMES_BACK,
	/* It would be lost. */
	LUO_IOMMUFD_LOST,
};

/* A mapping. */
struct luo_iommufd_mapping {
	/* In bytes. */
	unsigned long iova;
	unsigned long length;
	/* Where in @pages it starts, in bytes. */
	unsigned long start;
	struct iopt_pages *pages;
	bool readable;
	bool writeable;

	/* What the pages are: a piece of a file, in bytes. */
	struct file *file;
	unsigned long file_start;
	unsigned long file_length;
	bool pages_writable;
	u8 account_mode;
};

struct iommufd_ctx *luo_iommufd_ctx(struct file *file);
bool luo_iommufd_is_memory(struct file *file);
bool luo_iommufd_accounts_process(struct iommufd_ctx *ictx);
bool luo_iommufd_container(struct iommufd_ctx *ictx, u32 *id);
enum luo_iommufd_object luo_iommufd_next(struct iommufd_ctx *ictx, u32 *id,
					 struct iommufd_ioas **ioas);
bool luo_iommufd_hold(struct iommufd_ctx *ictx);
void luo_iommufd_unhold(struct iommufd_ctx *ictx);

void luo_iommufd_ioas_put(struct iommufd_ioas *ioas);
bool luo_iommufd_ioas_huge_pages(struct iommufd_ioas *ioas);
void luo_iommufd_ioas_lock(struct iommufd_ioas *ioas);
bool luo_iommufd_ioas_trylock(struct iommufd_ioas *ioas);
void luo_iommufd_ioas_unlock(struct iommufd_ioas *ioas);
void luo_iommufd_ioas_hold(struct iommufd_ioas *ioas);
void luo_iommufd_ioas_unhold(struct iommufd_ioas *ioas);
struct iopt_allowed *luo_iommufd_next_allowed(struct iommufd_ioas *ioas,
					      struct iopt_allowed *allowed,
					      unsigned long *start,
					      unsigned long *last);
struct iopt_area *luo_iommufd_next_area(struct iommufd_ioas *ioas,
					struct iopt_area *area);
bool luo_iommufd_area_is_settled(struct iopt_area *area);
int luo_iommufd_area_mapping(struct iopt_area *area,
			     struct luo_iommufd_mapping *mapping);
void luo_iommufd_area_pin(struct iopt_area *area);
void luo_iommufd_area_unpin(struct iopt_area *area);

struct file *luo_iommufd_create(bool account_process);
struct iommufd_ioas *luo_iommufd_ioas_create(struct iommufd_ctx *ictx, u32 id);
int luo_iommufd_ioas_no_huge_pages(struct iommufd_ioas *ioas);
int luo_iommufd_ioas_allow(struct iommufd_ioas *ioas, unsigned long start,
			   unsigned long last);
struct iopt_pages *luo_iommufd_pages_create(struct file *file,
					    unsigned long start,
					    unsigned long length,
					    bool writable, u8 account_mode);
void luo_iommufd_pages_put(struct iopt_pages *pages);
int luo_iommufd_ioas_map(struct iommufd_ioas *ioas, unsigned long iova,
			 unsigned long length, unsigned long start,
			 bool readable, bool writeable,
			 struct iopt_pages *pages);

#endif
