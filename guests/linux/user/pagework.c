/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fixed piece of work for processes that walk memory, and for others that only compute: what asynchronous page faults
 * are measured by.
 *
 *	pagework mem=N comp=N pages=N passes=N spin=N cspin=N walk=seq|random write=0|1 kernel=0|1 tag=N go=FILE
 *
 * mem processes each walk `pages` pages `passes` times, with `spin` steps of computing after each page; comp processes
 * take `cspin` thousand steps.  With kernel=1 it is the kernel that touches each page first, for a system call.
 * Memory is filled first (word i with i + tag * 2^40 times a constant, by which it can be found from outside, and with
 * zeroes at the end); then comes a line
 *
 *	pagework: ready
 *
 * and the work begins when FILE exists.  At the end a line for each process and one for all:
 *
 *	pagework: mem 0 ns=N checksum=0x...
 *	pagework: done ns=N slowest=N
 */
#include "user.h"

enum { SYS_faccessat = 48, SYS_pwrite64 = 68, SYS_nanosleep = 101, SYS_mmap = 222, SYS_mlockall = 230 };
enum { SYS_memfd_create = 279 };
enum { AT_FDCWD = -100, ENOENT = 2 };
enum { PROT_RW = 3, MAP_SHARED = 1, MAP_ANONYMOUS = 0x20, MAP_POPULATE = 0x8000 };

#define PAGE		4096ul
#define WORDS		(PAGE / sizeof(u64))
#define MAX_WORKERS	64

struct shared {
	volatile u32 waiting;		/* who is ready to begin */
	volatile u32 go;
	volatile u64 began;
	struct {
		volatile u64 end, checksum;
	} of[MAX_WORKERS];
};

static struct {
	u64 mem, comp, pages, passes, spin, cspin, random, write, kernel, tag;
	const char *go;
} want = { .mem = 1, .comp = 1, .pages = 256, .passes = 1, .spin = 20000, .cspin = 100000 };

static u64 steps(u64 x, u64 count)	/* xorshift64 */
{
	while (count--) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	return x;
}

static void *memory(u64 bytes)
{
	long at = syscall6(SYS_mmap, 0, bytes, PROT_RW, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (at < 0 && at > -4096)
		quit(2);
	return (void *)at;
}

static void nap(void)
{
	u64 time[2] = { 0, 1000000 };

	syscall5(SYS_nanosleep, (u64)time, 0, 0, 0, 0);
}

static u64 walk(volatile u64 *memory, u64 id)
{
	u64 sum = 0x1234 + id, at = 0;
	long file = want.kernel ? syscall5(SYS_memfd_create, (u64)"pagework", 0, 0, 0, 0) : -1;

	for (u64 pass = 0; pass < want.passes; pass++)
		for (u64 i = 0; i < want.pages; i++) {
			volatile u64 *page;

			/* An odd stride visits each page of a power of two once: not in the order of addresses. */
			at = want.random ? (at + (0x9e3779b1 % want.pages | 1)) % want.pages : i;
			page = memory + at * WORDS;
			if (want.kernel && syscall5(SYS_pwrite64, file, (u64)page, PAGE, 0, 0) != (long)PAGE)
				quit(3);
			for (u64 word = 0; word < WORDS; word += 8)
				sum = sum * 6364136223846793005ul + page[word];
			if (want.write)
				page[0] = sum;
			sum = steps(sum | 1, want.spin);
		}
	return sum;
}

static void work(struct shared *shared, volatile u64 *memory, u64 id)
{
	u64 checksum;

	__atomic_add_fetch(&shared->waiting, 1, __ATOMIC_SEQ_CST);
	while (!shared->go)
		nap();
	checksum = id < want.mem ? walk(memory + id * want.pages * WORDS, id) : steps(0x9999 + id, want.cspin * 1000);
	shared->of[id].checksum = checksum;
	shared->of[id].end = nanoseconds();
	quit(0);
}

static const char *value(const char *word, const char *name)
{
	while (*name && *word == *name) {
		word++;
		name++;
	}
	return !*name && *word == '=' ? word + 1 : 0;
}

static const char usage[] =
	"pagework: mem=1 comp=1 pages=256 passes=1 spin=20000 cspin=100000 walk=seq|random write=0 kernel=0 tag=0 go=FILE\n";

/* Whether all of them are known. */
static int read_words(int argc, char **argv)
{
	struct {
		const char *name;
		u64 *value;
	} numbers[] = {
		{ "mem", &want.mem }, { "comp", &want.comp }, { "pages", &want.pages }, { "passes", &want.passes },
		{ "spin", &want.spin }, { "cspin", &want.cspin }, { "write", &want.write },
		{ "kernel", &want.kernel }, { "tag", &want.tag },
	};

	for (int i = 1; i < argc; i++) {
		const char *found;
		int known = 0;

		for (u64 n = 0; n < sizeof(numbers) / sizeof(numbers[0]); n++)
			if ((found = value(argv[i], numbers[n].name))) {
				*numbers[n].value = number(found);
				known = 1;
			}
		if ((found = value(argv[i], "walk"))) {
			want.random = same(found, "random");
			known = 1;
		}
		if ((found = value(argv[i], "go"))) {
			want.go = found;
			known = 1;
		}
		if (!known)
			return 0;
	}
	return 1;
}

static void say(const char *text)
{
	struct line line = { 0 };

	put(&line, "pagework: ");
	put(&line, text);
	put(&line, "\n");
	send(&line);
}

static void report(const struct shared *shared, u64 end)
{
	u64 slowest = 0;
	struct line line = { 0 };

	for (u64 id = 0; id < want.mem + want.comp; id++) {
		u64 took = shared->of[id].end - shared->began;
		struct line each = { 0 };

		if (took > slowest)
			slowest = took;
		put(&each, id < want.mem ? "pagework: mem " : "pagework: comp ");
		put_number(&each, id < want.mem ? id : id - want.mem, 10);
		put(&each, " ns=");
		put_number(&each, took, 10);
		put(&each, " checksum=0x");
		put_number(&each, shared->of[id].checksum, 16);
		put(&each, "\n");
		send(&each);
	}
	put(&line, "pagework: done ns=");
	put_number(&line, end - shared->began, 10);
	put(&line, " slowest=");
	put_number(&line, slowest, 10);
	put(&line, "\n");
	send(&line);
}

int start(int argc, char **argv)
{
	struct shared *shared;
	volatile u64 *pages;
	u64 workers;

	if (!read_words(argc, argv)) {
		struct line line = { 0 };

		put(&line, usage);
		send(&line);
		return 2;
	}
	workers = want.mem + want.comp;
	if (!workers || workers > MAX_WORKERS || !want.pages || (want.random && want.pages & (want.pages - 1)))
		return 2;
	shared = memory(PAGE);
	pages = memory((want.mem ? want.mem : 1) * want.pages * PAGE);
	for (u64 i = 0; i < want.mem * want.pages * WORDS; i++)
		pages[i] = (i + (want.tag << 40)) * 0x9e3779b97f4a7c15ul;
	syscall5(SYS_mlockall, 3, 0, 0, 0, 0);
	for (u64 id = 0; id < workers; id++) {
		long child = syscall5(SYS_clone, SIGCHLD, 0, 0, 0, 0);

		if (child < 0)
			return 2;
		if (!child)
			work(shared, pages, id);
	}
	while (shared->waiting < workers)
		nap();
	say("ready");
	while (want.go && syscall5(SYS_faccessat, AT_FDCWD, (u64)want.go, 0, 0, 0) == -ENOENT)
		nap();
	shared->began = nanoseconds();
	shared->go = 1;
	for (u64 id = 0; id < workers; id++)
		syscall5(SYS_wait4, -1, 0, 0, 0, 0);
	report(shared, nanoseconds());
	for (u64 i = 0; i < want.mem * want.pages * WORDS; i++)
		pages[i] = 0;
	return 0;
}
