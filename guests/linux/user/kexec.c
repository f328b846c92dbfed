// SPDX-License-Identifier: Apache-2.0
/*
 * Another kernel in place of the running one: now, or when this one panics.
 *
 *     kexec load IMAGE INITRD CMDLINE
 *     kexec crash IMAGE INITRD CMDLINE
 *     kexec exec
 *
 * IMAGE is an arm64 Image, INITRD whatever the kernel unpacks; both may be block devices, which are read to their end.
 * The new kernel gets the device tree of this one with another /chosen.  Debian's kernels for arm64 have no
 * kexec_file_load, so what that would do is done here: Linux Documentation/arch/arm64/booting.rst, kexec_load(2), and
 * for crash kernels Documentation/admin-guide/kdump/kdump.rst.
 */
#include "user.h"

enum { SYS_openat = 56, SYS_close = 57, SYS_lseek = 62, SYS_read = 63, SYS_sync = 81, SYS_kexec_load = 104 };
enum { SYS_reboot = 142, SYS_mmap = 222 };
enum { AT_FDCWD = -100, SEEK_SET = 0, SEEK_END = 2, PROT_READ_WRITE = 3, MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20 };
enum { KEXEC_ON_CRASH = 1, KEXEC_ARCH_AARCH64 = 183 << 16 };
enum { REBOOT_MAGIC1 = 0xfee1dead, REBOOT_MAGIC2 = 672274793, REBOOT_KEXEC = 0x45584543 };

#define MAX_RANGES	16
#define MAX_CPUS	64
#define PAGE		0x1000ul
#define TWO_MIB		0x200000ul
#define ROUND(value, to) (((value) + (to) - 1) & ~((to) - 1))

struct file {
	u8 *data;
	u64 size;
};

struct range {
	u64 start, end;		/* of the last byte and one */
};

struct segment {
	const void *from;
	u64 from_size, to, to_size;
};

static __attribute__((noreturn)) void fail(const char *what, const char *name, long error)
{
	struct line line = { 0 };

	put(&line, "kexec: ");
	put(&line, what);
	put(&line, name);
	if (error < 0) {
		put(&line, ": error ");
		put_number(&line, -error, 10);
	}
	put(&line, "\n");
	send(&line);
	quit(1);
}

static u8 *room(u64 size)
{
	long at = syscall6(SYS_mmap, 0, size, PROT_READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at < 0 && at > -4096)
		fail("no memory", "", at);
	return (u8 *)at;
}

static long try_open(const char *name)
{
	return syscall5(SYS_openat, AT_FDCWD, (u64)name, 0, 0, 0);
}

/* Files of /proc and /sys have no size that could be asked for: `most` is enough then.  One more byte is zero. */
static struct file read_file(const char *name, u64 most)
{
	struct file file = { 0 };
	long fd = try_open(name), got;

	if (fd < 0)
		fail("cannot open ", name, fd);
	if (!most) {
		most = syscall5(SYS_lseek, fd, 0, SEEK_END, 0, 0);
		syscall5(SYS_lseek, fd, 0, SEEK_SET, 0, 0);
	}
	file.data = room(most + 1);
	do {
		got = syscall5(SYS_read, fd, (u64)file.data + file.size, most - file.size, 0, 0);
		if (got < 0)
			fail("cannot read ", name, got);
		file.size += got;
	} while (got);
	syscall5(SYS_close, fd, 0, 0, 0, 0);
	return file;
}

static u64 length(const char *text)
{
	u64 count = 0;

	while (text[count])
		count++;
	return count;
}

/* With or without 0x. Moves `text` behind the number. */
static u64 hexadecimal(const char **text)
{
	u64 value = 0;

	if ((*text)[0] == '0' && (*text)[1] == 'x')
		*text += 2;
	for (;; (*text)++) {
		char c = **text;

		if (c >= '0' && c <= '9')
			value = value << 4 | (c - '0');
		else if (c >= 'a' && c <= 'f')
			value = value << 4 | (c - 'a' + 10);
		else
			return value;
	}
}

static int begins(const char *text, const char *with)
{
	while (*with && *text == *with) {
		text++;
		with++;
	}
	return !*with;
}

/* The ranges of that name in /proc/iomem, whose lines are "  40000000-5fdfffff : System RAM". */
static u64 find_ranges(const char *name, struct range *ranges)
{
	const char *at = (const char *)read_file("/proc/iomem", 1 << 20).data;
	u64 count = 0;

	while (*at) {
		struct range range;

		while (*at == ' ')
			at++;
		range.start = hexadecimal(&at);
		at++;
		range.end = hexadecimal(&at) + 1;
		if (begins(at, " : ") && begins(at + 3, name) && count < MAX_RANGES)
			ranges[count++] = range;
		while (*at && *at++ != '\n')
			;
	}
	return count;
}

/* ------------------------------------------------------------------------------------------------ the device tree */

enum { FDT_BEGIN_NODE = 1, FDT_END_NODE = 2, FDT_PROP = 3, FDT_END = 9 };
enum { H_MAGIC, H_TOTAL, H_STRUCT, H_STRINGS, H_RESERVED, H_VERSION, H_LAST, H_BOOT_CPU, H_STRINGS_SIZE, H_STRUCT_SIZE };

static u32 swap(u32 value)
{
	return __builtin_bswap32(value);
}

struct tree {
	const u8 *old_strings;
	u8 *out;		/* the end of the structure so far */
	char *strings;		/* what is new of the strings */
	u64 strings_size, old_strings_size;
};

static void put_word(struct tree *tree, u32 value)
{
	*(u32 *)tree->out = swap(value);
	tree->out += 4;
}

static void put_property(struct tree *tree, const char *name, const void *value, u64 size)
{
	u64 room_for_name = length(name) + 1;

	put_word(tree, FDT_PROP);
	put_word(tree, size);
	put_word(tree, tree->old_strings_size + tree->strings_size);
	__builtin_memcpy(tree->strings + tree->strings_size, name, room_for_name);
	tree->strings_size += room_for_name;
	__builtin_memcpy(tree->out, value, size);
	tree->out += ROUND(size, 4);	/* the rest is zero */
}

static void put_cells(struct tree *tree, const char *name, u64 first, u64 second, u64 count)
{
	u64 cells[2] = { __builtin_bswap64(first), __builtin_bswap64(second) };

	put_property(tree, name, cells, count * 8);
}

struct chosen {
	const char *command_line;
	struct range initrd, elfcorehdr, usable;	/* the last two for crash kernels */
};

/* What is ours to say, and seeds, which the kernel has used up. */
static int is_replaced(const char *name)
{
	return same(name, "bootargs") || begins(name, "linux,initrd-") || begins(name, "linux,elfcorehdr") ||
	       begins(name, "linux,usable-memory-range") || same(name, "kaslr-seed") || same(name, "rng-seed");
}

static void put_chosen(struct tree *tree, const struct chosen *chosen)
{
	put_property(tree, "bootargs", chosen->command_line, length(chosen->command_line) + 1);
	put_cells(tree, "linux,initrd-start", chosen->initrd.start, 0, 1);
	put_cells(tree, "linux,initrd-end", chosen->initrd.end, 0, 1);
	if (chosen->usable.end) {
		put_cells(tree, "linux,elfcorehdr", chosen->elfcorehdr.start,
			  chosen->elfcorehdr.end - chosen->elfcorehdr.start, 2);
		put_cells(tree, "linux,usable-memory-range", chosen->usable.start,
			  chosen->usable.end - chosen->usable.start, 2);
	}
}

/* The structure again, token by token, with another /chosen. */
static void copy_structure(struct tree *tree, const u32 *at, const struct chosen *chosen)
{
	u64 depth = 0, in_chosen = 0, size;

	for (;;) {
		u32 token = swap(*at);

		switch (token) {
		case FDT_BEGIN_NODE:
			size = 4 + ROUND(length((const char *)(at + 1)) + 1, 4);
			in_chosen = ++depth == 2 && same((const char *)(at + 1), "chosen");
			break;
		case FDT_PROP:
			size = 12 + ROUND(swap(at[1]), 4);
			if (in_chosen && is_replaced((const char *)tree->old_strings + swap(at[2]))) {
				at += size / 4;
				continue;
			}
			break;
		case FDT_END_NODE:
			depth--;
			/* fall through */
		default:
			size = 4;
		}
		__builtin_memcpy(tree->out, at, size);
		tree->out += size;
		at += size / 4;
		if (token == FDT_END)
			return;
		if (token == FDT_BEGIN_NODE && in_chosen)
			put_chosen(tree, chosen);
	}
}

static struct file make_tree(const struct chosen *chosen)
{
	struct file old = read_file("/sys/firmware/fdt", 1 << 20);
	const u32 *head = (const u32 *)old.data;
	u64 before = swap(head[H_STRUCT]), capacity = 2 * old.size + 2 * PAGE;
	struct tree tree = { .old_strings = old.data + swap(head[H_STRINGS]), .strings = (char *)room(PAGE) };
	struct file new = { .data = room(capacity) };
	u32 *new_head = (u32 *)new.data;

	/* Every writer that is known has the reserved memory before the structure, and the strings after it. */
	if (swap(head[H_MAGIC]) != 0xd00dfeed || swap(head[H_RESERVED]) > before || length(chosen->command_line) > PAGE)
		fail("the device tree is not as expected", "", 0);
	tree.old_strings_size = swap(head[H_STRINGS_SIZE]);
	__builtin_memcpy(new.data, old.data, before);
	tree.out = new.data + before;
	copy_structure(&tree, (const u32 *)(old.data + before), chosen);
	new_head[H_STRUCT_SIZE] = swap(tree.out - new.data - before);
	new_head[H_STRINGS] = swap(tree.out - new.data);
	__builtin_memcpy(tree.out, tree.old_strings, tree.old_strings_size);
	__builtin_memcpy(tree.out + tree.old_strings_size, tree.strings, tree.strings_size);
	new_head[H_STRINGS_SIZE] = swap(tree.old_strings_size + tree.strings_size);
	new.size = tree.out - new.data + tree.old_strings_size + tree.strings_size;
	new_head[H_TOTAL] = swap(new.size);
	return new;
}

/* ------------------------------------------------------------- what a crash kernel is told of the memory before it */

struct elf_header {
	u8 identity[16];
	unsigned short type, machine;
	u32 version;
	u64 entry, program_headers, section_headers;
	u32 flags;
	unsigned short size, program_header_size, program_header_count, section_header_size, count, names;
};

struct program_header {
	u32 type, flags;
	u64 offset, address, physical, file_size, size, align;
};

enum { ET_CORE = 4, EM_AARCH64 = 183, PT_LOAD = 1, PT_NOTE = 4 };

static void add_header(struct elf_header *elf, u32 type, u64 physical, u64 size)
{
	struct program_header *headers = (struct program_header *)(elf + 1);

	/* Virtual addresses are left out: the kernel's notes (vmcoreinfo) tell how to find them. */
	headers[elf->program_header_count++] = (struct program_header){
		.type = type, .flags = type == PT_LOAD ? 7 : 0, .offset = physical, .physical = physical,
		.file_size = size, .size = size,
	};
}

/* crash_notes has an address, crash_notes_size a decimal number. */
static void add_cpu(struct elf_header *elf, u64 cpu)
{
	struct line address = { 0 }, size = { 0 };
	const char *text;
	char *number_text;
	long fd;

	put(&address, "/sys/devices/system/cpu/cpu");
	put_number(&address, cpu, 10);
	size = address;
	put(&address, "/crash_notes");
	put(&size, "/crash_notes_size");
	fd = try_open(address.text);
	if (fd < 0)
		return;
	syscall5(SYS_close, fd, 0, 0, 0, 0);
	text = (const char *)read_file(address.text, 64).data;
	number_text = (char *)read_file(size.text, 64).data;
	number_text[length(number_text) - 1] = '\0';	/* the line feed */
	add_header(elf, PT_NOTE, hexadecimal(&text), number(number_text));
}

static struct file make_core_header(struct range crash)
{
	struct file file = { .data = room(2 * PAGE), .size = 2 * PAGE };
	struct elf_header *elf = (struct elf_header *)file.data;
	const char *vmcoreinfo = (const char *)read_file("/sys/kernel/vmcoreinfo", 64).data;
	struct range ram[MAX_RANGES];
	u64 count = find_ranges("System RAM", ram), address, i;

	*elf = (struct elf_header){
		.identity = { 0x7f, 'E', 'L', 'F', 2, 1, 1 }, .type = ET_CORE, .machine = EM_AARCH64, .version = 1,
		.program_headers = sizeof(*elf), .size = sizeof(*elf),
		.program_header_size = sizeof(struct program_header),
	};
	for (i = 0; i < MAX_CPUS; i++)
		add_cpu(elf, i);
	address = hexadecimal(&vmcoreinfo);
	vmcoreinfo++;
	add_header(elf, PT_NOTE, address, hexadecimal(&vmcoreinfo));
	for (i = 0; i < count; i++) {
		if (crash.start < ram[i].start || crash.end > ram[i].end) {
			add_header(elf, PT_LOAD, ram[i].start, ram[i].end - ram[i].start);
			continue;
		}
		if (ram[i].start < crash.start)
			add_header(elf, PT_LOAD, ram[i].start, crash.start - ram[i].start);
		if (crash.end < ram[i].end)
			add_header(elf, PT_LOAD, crash.end, ram[i].end - crash.end);
	}
	return file;
}

/* ----------------------------------------------------------------------------------------------------------- loading */

/* What is jumped to, with the MMU off: the device tree's address into x0, nothing into x1 to x3, on into the kernel. */
static struct file make_start(u64 tree, u64 kernel)
{
	static const u32 code[] = {
		0x580000c0,	/* ldr x0, 1f */
		0xd2800001,	/* mov x1, #0 */
		0xd2800002,	/* mov x2, #0 */
		0xd2800003,	/* mov x3, #0 */
		0x58000084,	/* ldr x4, 2f */
		0xd61f0080,	/* br x4 */
	};
	struct file file = { .data = room(PAGE), .size = sizeof(code) + 16 };
	u64 *literals = (u64 *)(file.data + sizeof(code));

	__builtin_memcpy(file.data, code, sizeof(code));
	literals[0] = tree;
	literals[1] = kernel;
	return file;
}

static void place(struct segment *segment, struct file file, u64 to, u64 room_there)
{
	*segment = (struct segment){ file.data, file.size, to, ROUND(room_there, PAGE) };
}

static int load(int on_crash, char **argv)
{
	struct file image = read_file(argv[0], 0), initrd = read_file(argv[1], 0), core = { 0 }, tree, start;
	const u64 *header = (const u64 *)image.data;
	struct chosen chosen = { .command_line = argv[2] };
	struct segment segments[5];
	struct range ranges[MAX_RANGES];
	u64 count = 0, kernel, at, size;
	long result;

	if (image.size < 64 || *(u32 *)(image.data + 56) != 0x644d5241)
		fail("no arm64 Image: ", argv[0], 0);
	if (!find_ranges(on_crash ? "Crash kernel" : "System RAM", ranges))
		fail("no memory for it in /proc/iomem", on_crash ? ": crashkernel=?" : "", 0);

	kernel = ROUND(ranges[0].start, TWO_MIB) + header[1];
	size = header[2] > image.size ? header[2] : image.size;	/* with what it clears */
	if (image.size > header[2])
		image.size = header[2];				/* a disk is longer, by less than a sector */
	place(&segments[count++], image, kernel, size);
	at = ROUND(kernel + size, TWO_MIB);
	chosen.initrd = (struct range){ at, at + initrd.size };
	place(&segments[count++], initrd, at, initrd.size);
	at = ROUND(at + initrd.size, TWO_MIB);
	if (on_crash) {
		core = make_core_header(ranges[0]);
		chosen.usable = ranges[0];
		chosen.elfcorehdr = (struct range){ at, at + core.size };
		place(&segments[count++], core, at, core.size);
		at = ROUND(at + core.size, TWO_MIB);
	}
	tree = make_tree(&chosen);	/* alone in its 2 MiB: the kernel maps these first */
	place(&segments[count++], tree, at, tree.size);
	start = make_start(at, kernel);
	at = ROUND(at + tree.size, TWO_MIB);
	place(&segments[count++], start, at, start.size);
	if (at + PAGE > ranges[0].end)
		fail("the memory for it is too small", "", 0);

	result = syscall5(SYS_kexec_load, at, count, (u64)segments, KEXEC_ARCH_AARCH64 | (on_crash ? KEXEC_ON_CRASH : 0), 0);
	if (result < 0)
		fail("kexec_load", "", result);
	return 0;
}

int start(int argc, char **argv)
{
	if (argc == 5 && (same(argv[1], "load") || same(argv[1], "crash")))
		return load(same(argv[1], "crash"), argv + 2);
	if (argc == 2 && same(argv[1], "exec")) {
		syscall5(SYS_sync, 0, 0, 0, 0, 0);
		fail("nothing is loaded", "", syscall5(SYS_reboot, REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_KEXEC, 0, 0));
	}
	fail("load IMAGE INITRD CMDLINE, crash IMAGE INITRD CMDLINE, or exec", "", 0);
}
