// SPDX-License-Identifier: Apache-2.0
/*
 * fork, exec of itself, wait: COUNT times, or for SECONDS s.
 *
 *     forkbench COUNT          forkbench for SECONDS
 */
#include "user.h"

static void fork_and_exec(char *self)
{
	char *argv[] = { self, "child", 0 };
	char *environment[] = { 0 };
	int status = 0;
	long pid = syscall5(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (pid == 0) {
		syscall5(SYS_execve, (u64)self, (u64)argv, (u64)environment, 0, 0);
		quit(127);
	}
	if (pid > 0)
		pid = syscall5(SYS_wait4, pid, (u64)&status, 0, 0, 0);
	if (pid < 0 || status) {
		struct line line = { 0 };

		put(&line, "forkbench: a child failed\n");
		send(&line);
		quit(1);
	}
}

int start(int argc, char **argv)
{
	int timed = argc > 2 && same(argv[1], "for");
	u64 limit = number(timed ? argv[2] : argc > 1 ? argv[1] : "100");
	u64 begin = nanoseconds(), count = 0, now = begin;
	struct line line = { 0 };

	if (argc > 1 && same(argv[1], "child"))
		return 0;
	for (; timed ? now - begin < limit * 1000000000 : count < limit; count++) {
		fork_and_exec("/proc/self/exe");
		now = nanoseconds();
	}
	put(&line, "forkbench: iterations=");
	put_number(&line, count, 10);
	put(&line, " ns=");
	put_number(&line, now - begin, 10);
	put(&line, " ns_per_iteration=");
	put_number(&line, count ? (now - begin) / count : 0, 10);
	put(&line, "\n");
	send(&line);
	return 0;
}
