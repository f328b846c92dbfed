// SPDX-License-Identifier: Apache-2.0
#include "fdt.h"
#include "ram.h"

#define PAGE		4096ul
#define DTB_ROOM	0x100000ul	/* no device tree is larger */

u64 stack_of(u64 index);		/* of start.S: the end of that CPU's stack */

void ram_find(u64 *start, u64 *end)
{
	struct fdt f;
	u64 base = 0, size = 0;
	const u8 *data;
	u32 len;

	if (!fdt_open(&f, machine.dtb))
		result_failed("no device tree");
	data = fdt_prop(&f, fdt_node(&f, "/memory", 7), "reg", &len);
	if (!data || len < 16)
		result_failed("no /memory in the device tree");
	for (u32 i = 0; i < 8; i++) {
		base = base << 8 | data[i];
		size = size << 8 | data[8 + i];
	}
	*start = base;
	*end = base + size;
}

u64 ram_take(u64 pages)
{
	static u64 next, end;
	u64 at;

	if (!end) {
		ram_find(&at, &end);
		/* A guest that is loaded at the RAM base has its device tree behind it. */
		next = stack_of(MAX_CPUS - 1);
		if (machine.dtb >= next)
			next = machine.dtb + DTB_ROOM;
		next = (next + PAGE - 1) & ~(PAGE - 1);
	}
	at = next;
	if (at > end || pages > (end - at) / PAGE)
		result_failed("not enough memory: give the guest more, or have it use less");
	next += pages * PAGE;
	return at;
}
