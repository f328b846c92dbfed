/* SPDX-License-Identifier: Apache-2.0 */
/* What the guest's programs need in place of a C library: system calls, text, time. */
#ifndef USER_H
#define USER_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

enum { SYS_write = 64, SYS_exit_group = 94, SYS_clock_gettime = 113, SYS_getpid = 172 };
enum { SYS_clone = 220, SYS_execve = 221, SYS_wait4 = 260 };
enum { SIGCHLD = 17 };

static inline long syscall6(long number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register long x8 __asm__("x8") = number;
	register u64 x0 __asm__("x0") = a;
	register u64 x1 __asm__("x1") = b;
	register u64 x2 __asm__("x2") = c;
	register u64 x3 __asm__("x3") = d;
	register u64 x4 __asm__("x4") = e;
	register u64 x5 __asm__("x5") = f;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory", "cc");
	return x0;
}

static inline long syscall5(long number, u64 a, u64 b, u64 c, u64 d, u64 e)
{
	return syscall6(number, a, b, c, d, e, 0);
}

static inline __attribute__((noreturn)) void quit(int code)
{
	for (;;)
		syscall5(SYS_exit_group, code, 0, 0, 0, 0);
}

static inline u64 nanoseconds(void)
{
	u64 time[2];

	syscall5(SYS_clock_gettime, 1 /* CLOCK_MONOTONIC */, (u64)time, 0, 0, 0);
	return time[0] * 1000000000 + time[1];
}

/* One line, which goes out in one write: the console does not mix the lines of two programs. */
struct line {
	u64 used;
	char text[200];
};

static inline void put(struct line *line, const char *text)
{
	while (*text && line->used < sizeof(line->text))
		line->text[line->used++] = *text++;
}

static inline void put_number(struct line *line, u64 value, u32 base)
{
	char digits[24];
	int at = sizeof(digits);

	digits[--at] = '\0';
	do
		digits[--at] = "0123456789abcdef"[value % base];
	while (value /= base);
	put(line, &digits[at]);
}

static inline void send(const struct line *line)
{
	syscall5(SYS_write, 1, (u64)line->text, line->used, 0, 0);
}

/* Decimal; what is not a number is 0. */
static inline u64 number(const char *text)
{
	u64 value = 0;

	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return 0;
		value = value * 10 + (*text - '0');
	}
	return value;
}

static inline int same(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

int start(int argc, char **argv);

#endif
