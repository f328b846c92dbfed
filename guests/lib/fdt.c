// SPDX-License-Identifier: Apache-2.0
#include "fdt.h"

#define MAGIC		0xd00dfeedu
#define HEADER_SIZE	40u
#define MAX_SIZE	(2u << 20)	/* the boot protocol's limit; also keeps the arithmetic below from wrapping */

enum { BEGIN_NODE = 1, END_NODE = 2, PROP = 3, NOP = 4, END = 9 };

struct token {
	u32 tag;
	const char *name;	/* of the node or the property; terminated inside the blob */
	const u8 *data;		/* property value, len bytes inside the blob */
	u32 len;
};

static u32 be32(const u8 *p)
{
	/* Volatile, so that four byte loads stay four byte loads: property data may stand anywhere. */
	const volatile u8 *q = p;

	return (u32)q[0] << 24 | (u32)q[1] << 16 | (u32)q[2] << 8 | q[3];
}

bool fdt_open(struct fdt *f, u64 addr)
{
	const u8 *b = (const u8 *)addr;
	u32 total, structs_size, strings_size;

	if (addr & 3 || be32(b) != MAGIC)
		return false;
	total = be32(b + 4);
	f->blob = b;
	f->structs = be32(b + 8);
	f->strings = be32(b + 12);
	strings_size = be32(b + 32);
	structs_size = be32(b + 36);
	if (be32(b + 20) < 17 || be32(b + 24) > 17)	/* version, last compatible version */
		return false;
	if (total < HEADER_SIZE || total > MAX_SIZE)
		return false;
	if (f->structs < HEADER_SIZE || f->structs & 3 || f->structs > total || structs_size > total - f->structs)
		return false;
	if (f->strings < HEADER_SIZE || f->strings > total || strings_size > total - f->strings)
		return false;
	f->structs_end = f->structs + structs_size;
	f->strings_end = f->strings + strings_size;
	return true;
}

/* The length of the string at off, or false if it does not end before end. */
static bool terminated(const struct fdt *f, u32 off, u32 end, u32 *len)
{
	for (*len = 0; off + *len < end; (*len)++)
		if (!f->blob[off + *len])
			return true;
	return false;
}

/* The token at *off; moves *off past it.  False at the end of the tree or of what can be believed. */
static bool next(const struct fdt *f, u32 *off, struct token *t)
{
	u32 len, name;

	for (;;) {
		if (*off > f->structs_end || f->structs_end - *off < 4)
			return false;
		t->tag = be32(f->blob + *off);
		*off += 4;

		switch (t->tag) {
		case NOP:
			continue;
		case END_NODE:
			return true;
		case BEGIN_NODE:
			if (!terminated(f, *off, f->structs_end, &len))
				return false;
			t->name = (const char *)f->blob + *off;
			*off += (len + 1 + 3) & ~3u;
			return true;
		case PROP:
			if (f->structs_end - *off < 8)
				return false;
			t->len = be32(f->blob + *off);
			name = be32(f->blob + *off + 4);
			*off += 8;
			if (t->len > f->structs_end - *off || name >= f->strings_end - f->strings ||
			    !terminated(f, f->strings + name, f->strings_end, &len))
				return false;
			t->name = (const char *)f->blob + f->strings + name;
			t->data = f->blob + *off;
			*off += (t->len + 3) & ~3u;
			return true;
		default:	/* END or garbage */
			return false;
		}
	}
}

u32 fdt_child(const struct fdt *f, u32 node, u32 after, const char **name)
{
	u32 off = after ? after : node;
	u32 depth = after ? 1 : 0;	/* of off below the parent */
	struct token t;

	while (next(f, &off, &t)) {
		if (t.tag == BEGIN_NODE && depth++ == 0) {
			*name = t.name;
			return off;
		}
		if (t.tag == END_NODE && depth-- == 0)
			break;		/* the end of the parent */
	}
	return FDT_NONE;
}

/* "cpus" names the node "cpus" and also "cpus@0": the unit address may be left out. */
static bool named(const char *node, const char *want, size_t len)
{
	size_t n = strlen(node);

	return n >= len && !memcmp(node, want, len) && (n == len || node[len] == '@');
}

u32 fdt_node(const struct fdt *f, const char *path, size_t len)
{
	u32 node = f->structs;
	const char *name, *end = path + len;
	struct token t;

	if (!next(f, &node, &t) || t.tag != BEGIN_NODE)
		return FDT_NONE;
	while (path < end) {
		const char *part = path;
		u32 child = FDT_NONE;

		if (*path == '/') {
			path++;
			continue;
		}
		while (path < end && *path != '/')
			path++;
		do
			child = fdt_child(f, node, child, &name);
		while (child && !named(name, part, (size_t)(path - part)));
		if (!child)
			return FDT_NONE;
		node = child;
	}
	return node;
}

const u8 *fdt_prop(const struct fdt *f, u32 node, const char *name, u32 *len)
{
	struct token t;

	/* Properties come before child nodes. */
	while (node && next(f, &node, &t) && t.tag == PROP) {
		if (str_is(t.name, strlen(t.name), name)) {
			*len = t.len;
			return t.data;
		}
	}
	return NULL;
}

bool fdt_prop_is(const struct fdt *f, u32 node, const char *name, const char *want)
{
	u32 len;
	const u8 *data = fdt_prop(f, node, name, &len);

	return data && len == strlen(want) + 1 && !memcmp(data, want, len);
}

bool fdt_prop_u32(const struct fdt *f, u32 node, const char *name, u32 *val)
{
	u32 len;
	const u8 *data = fdt_prop(f, node, name, &len);

	if (!data || len != 4)
		return false;
	*val = be32(data);
	return true;
}

bool fdt_reg(const struct fdt *f, u32 node, u32 cells, u64 *val)
{
	u32 len;
	const u8 *data = fdt_prop(f, node, "reg", &len);

	if (!data || cells < 1 || cells > 2 || len < cells * 4)
		return false;
	*val = be32(data);
	if (cells == 2)
		*val = *val << 32 | be32(data + 4);
	return true;
}
