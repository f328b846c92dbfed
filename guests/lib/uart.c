// SPDX-License-Identifier: Apache-2.0
/* PL011, polled. */
#include "guest.h"

#define UARTDR		0x00
#define UARTFR		0x18
#define UARTFR_TXFF	(1u << 5)
#define UARTFR_RXFE	(1u << 4)
#define UARTLCR_H	0x2c
#define UARTLCR_H_8N1	0x70	/* 8 bits, FIFOs on */
#define UARTCR		0x30
#define UARTCR_TX	0x301	/* UARTEN, TXE, RXE */

static u64 uart;

static void reg_write(u32 off, u32 val) { *(volatile u32 *)(uart + off) = val; }
static u32 reg_read(u32 off) { return *(volatile u32 *)(uart + off); }

void uart_init(u64 base)
{
	uart = base;
	reg_write(UARTLCR_H, UARTLCR_H_8N1);
	reg_write(UARTCR, UARTCR_TX);
}

void uart_write(const char *s, size_t len)
{
	for (; len; s++, len--) {
		/* A UART that stays full loses text rather than the run. */
		for (u32 spin = 0; (reg_read(UARTFR) & UARTFR_TXFF) && spin < 1u << 20; spin++)
			relax();
		reg_write(UARTDR, (u8)*s);
	}
}

int uart_read(void)
{
	return reg_read(UARTFR) & UARTFR_RXFE ? -1 : (int)(reg_read(UARTDR) & 0xff);
}
