/* SPDX-License-Identifier: Apache-2.0 */
/* A reader for flattened device trees that trusts nothing in them but the memory they stand in. */
#ifndef FDT_H
#define FDT_H

#include "guest.h"

struct fdt {
	const u8 *blob;
	u32 structs, structs_end;	/* offsets of the structure block */
	u32 strings, strings_end;
};

/* A node is the offset of the first token inside it; FDT_NONE stands for "there is none". */
#define FDT_NONE	0u

bool fdt_open(struct fdt *f, u64 addr);
u32 fdt_node(const struct fdt *f, const char *path, size_t len);

/* Children in order: *after is FDT_NONE for the first one, else the child before. */
u32 fdt_child(const struct fdt *f, u32 node, u32 after, const char **name);

const u8 *fdt_prop(const struct fdt *f, u32 node, const char *name, u32 *len);
bool fdt_prop_is(const struct fdt *f, u32 node, const char *name, const char *want);
bool fdt_prop_u32(const struct fdt *f, u32 node, const char *name, u32 *val);

/* The first number of "reg", which is one or two cells wide. */
bool fdt_reg(const struct fdt *f, u32 node, u32 cells, u64 *val);

#endif
