// SPDX-License-Identifier: Apache-2.0
/*
 * Integer work in registers, no system call: COUNT million steps (default 20).
 *
 *     cpubench [COUNT]
 */
#include "user.h"

int start(int argc, char **argv)
{
	u64 steps = number(argc > 1 ? argv[1] : "20") * 1000000;
	u64 begin = nanoseconds(), state = 0x9e3779b97f4a7c15, i;
	struct line line = { 0 };

	for (i = 0; i < steps; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		state = state * 6364136223846793005 + i;
	}
	put(&line, "cpubench: iterations=");
	put_number(&line, steps, 10);
	put(&line, " ns=");
	put_number(&line, nanoseconds() - begin, 10);
	put(&line, " checksum=0x");
	put_number(&line, state, 16);
	put(&line, "\n");
	send(&line);
	return 0;
}
