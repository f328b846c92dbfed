// SPDX-License-Identifier: Apache-2.0
#include "guest.h"

static void put(struct out *o, char c)
{
	if (!o->buf)
		uart_write(&c, 1);
	else if (o->len < o->cap)
		o->buf[o->len++] = c;	/* what does not fit is cut off */
}

static void pad(struct out *o, char c, size_t width, size_t have)
{
	for (; have < width; have++)
		put(o, c);
}

void out_vprintf(struct out *o, const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		bool left = false, wide = false, minus = false;
		char fill = ' ', digits[24];
		const char *s = digits;
		size_t width = 0, len = 0;
		u64 v;

		if (*fmt != '%') {
			put(o, *fmt);
			continue;
		}
		for (fmt++; *fmt == '-' || *fmt == '0'; fmt++) {
			if (*fmt == '-')
				left = true;
			else
				fill = '0';
		}
		for (; *fmt >= '0' && *fmt <= '9'; fmt++)
			width = width * 10 + (size_t)(*fmt - '0');
		for (; *fmt == 'l'; fmt++)
			wide = true;

		switch (*fmt) {
		case 'c':
			digits[0] = (char)va_arg(ap, int);
			len = 1;
			break;
		case 's':
			s = va_arg(ap, const char *);
			len = strlen(s);
			break;
		case 'd':
		case 'u':
		case 'x':
			if (*fmt == 'd') {
				s64 d = wide ? va_arg(ap, s64) : va_arg(ap, int);

				minus = d < 0;
				v = minus ? -(u64)d : (u64)d;
			} else {
				v = wide ? va_arg(ap, u64) : va_arg(ap, u32);
			}
			s = digits + sizeof(digits);
			do {
				u64 base = *fmt == 'x' ? 16 : 10;

				*(char *)--s = "0123456789abcdef"[v % base];
				v /= base;
				len++;
			} while (v);
			if (minus) {
				*(char *)--s = '-';
				len++;
			}
			break;
		case '\0':
			return;
		default:
			digits[0] = *fmt;
			len = 1;
			break;
		}
		if (!left)
			pad(o, fill, width, len);
		for (size_t i = 0; i < len; i++)
			put(o, s[i]);
		if (left)
			pad(o, ' ', width, len);
	}
}

void out_printf(struct out *o, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	out_vprintf(o, fmt, ap);
	va_end(ap);
}

void print(const char *fmt, ...)
{
	struct out o = { 0 };
	va_list ap;

	va_start(ap, fmt);
	out_vprintf(&o, fmt, ap);
	va_end(ap);
}
