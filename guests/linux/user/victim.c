/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process with a page to poison: it marks the page so that it can be found from outside, uses it a hundred times a
 * second, and says how the kernel tells it of the error.
 *
 *	victim [early|late] [name=NAME] [secs=N]
 *
 * early: killed as soon as the kernel hears of the error; late (the default): at the next access.  It prints
 *
 *	victim[57]: page 0xffff97729000, late
 *	victim[57]: SIGBUS, code 4, at 0xffff97729000
 *
 * and ends with code 135, as a shell has it for who dies of SIGBUS; or, without an error for `secs` (default 600), with 0.
 * Code 5 (BUS_MCEERR_AO) is an error in memory that it owns, 4 (BUS_MCEERR_AR) one that it has run into.
 * sdeivirt/ras/victims.py reads the page.
 */
#include "user.h"

enum { SYS_nanosleep = 101, SYS_rt_sigaction = 134, SYS_prctl = 167, SYS_mmap = 222 };
enum { SIGBUS = 7, SA_SIGINFO = 4 };
enum { PROT_RW = 3, MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20 };
enum { PR_SET_NAME = 15, PR_MCE_KILL = 33, PR_MCE_KILL_SET = 1, PR_MCE_KILL_LATE = 0, PR_MCE_KILL_EARLY = 1 };

#define PAGE	4096ul
#define MAGIC	0x5341522d49454453ul	/* "SDEI-RAS" */

/* The heartbeat is first: an access to it faults at the page's own address. */
struct page {
	volatile u64 heartbeat;
	u64 magic, pid, virtual;
	char name[32];
};

struct siginfo {
	int number, error, code, pad;
	u64 address;
};

struct sigaction {
	void (*handler)(int number, const struct siginfo *info, void *context);
	u64 flags;
	void (*restorer)(void);
	u64 mask;
};

static struct {
	const char *name;
	u64 early, secs, pid;
} want = { .name = "victim", .secs = 600 };

static void begin(struct line *line)
{
	put(line, want.name);
	put(line, "[");
	put_number(line, want.pid, 10);
	put(line, "]: ");
}

static void killed(int number, const struct siginfo *info, void *context)
{
	struct line line = { 0 };

	(void)number;
	(void)context;
	begin(&line);
	put(&line, "SIGBUS, code ");
	put_number(&line, info->code, 10);
	put(&line, ", at 0x");
	put_number(&line, info->address, 16);
	put(&line, "\n");
	send(&line);
	quit(128 + SIGBUS);
}

static const char *value(const char *word, const char *name)
{
	while (*name && *word == *name) {
		word++;
		name++;
	}
	return !*name && *word == '=' ? word + 1 : 0;
}

static struct page *mark(void)
{
	long at = syscall6(SYS_mmap, 0, PAGE, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct page *page = (struct page *)at;

	if (at < 0 && at > -4096)
		quit(2);
	page->pid = want.pid;
	page->virtual = at;
	for (u64 i = 0; i < sizeof(page->name) - 1 && want.name[i]; i++)
		page->name[i] = want.name[i];
	__atomic_store_n(&page->magic, MAGIC, __ATOMIC_RELEASE);
	return page;
}

int start(int argc, char **argv)
{
	struct sigaction action = { .handler = killed, .flags = SA_SIGINFO };
	u64 nap[2] = { 0, 10000000 };
	struct line line = { 0 };
	struct page *page;
	u64 until;

	for (int i = 1; i < argc; i++) {
		const char *found;

		if (same(argv[i], "early"))
			want.early = 1;
		else if ((found = value(argv[i], "name")))
			want.name = found;
		else if ((found = value(argv[i], "secs")))
			want.secs = number(found);
		else if (!same(argv[i], "late"))
			return 2;
	}
	want.pid = syscall5(SYS_getpid, 0, 0, 0, 0, 0);
	syscall5(SYS_prctl, PR_SET_NAME, (u64)want.name, 0, 0, 0);
	syscall5(SYS_prctl, PR_MCE_KILL, PR_MCE_KILL_SET, want.early ? PR_MCE_KILL_EARLY : PR_MCE_KILL_LATE, 0, 0);
	syscall5(SYS_rt_sigaction, SIGBUS, (u64)&action, 0, sizeof(action.mask), 0);
	page = mark();
	begin(&line);
	put(&line, "page 0x");
	put_number(&line, (u64)page, 16);
	put(&line, want.early ? ", early\n" : ", late\n");
	send(&line);
	for (until = nanoseconds() + want.secs * 1000000000; nanoseconds() < until; page->heartbeat++)
		syscall5(SYS_nanosleep, (u64)nap, 0, 0, 0, 0);
	page->magic = 0;
	return 0;
}
