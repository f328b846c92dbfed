// SPDX-License-Identifier: Apache-2.0
/* What there is besides PEs: the firmware's events, interrupts that nobody uses, and a host on the UART. */
#include "conform.h"
#include "fdt.h"

struct platform platform;

/* -- the host */

static void read_line(char *line, size_t cap)
{
	size_t n = 0;
	int c;

	for (;;) {
		c = -1;
		if (!WAIT(c >= 0 || (c = uart_read()) >= 0))	/* it looks once more at the end */
			bail_out("the host does not answer");
		if (c == '\n')
			break;
		if (n < cap - 1 && c != '\r')
			line[n++] = (char)c;
	}
	line[n] = '\0';
}

bool host_ask(u64 *value, char error[40], const char *fmt, ...)
{
	struct out uart = { 0 };
	char line[64];
	va_list ap;

	print("# host: ");
	va_start(ap, fmt);
	out_vprintf(&uart, fmt, ap);
	va_end(ap);
	print("\n");
	read_line(line, sizeof(line));
	if (line[0] == 'o' && line[1] == 'k' && (!line[2] || line[2] == ' ')) {
		if (value && line[2] && !parse_u64(line + 3, strlen(line + 3), value))
			bail_out("the host answers '%s'", line);
		return true;
	}
	if (memcmp(line, "error ", 6))
		bail_out("the host answers '%s'", line);
	if (error) {
		size_t n = strlen(line + 6);

		n = n < 39 ? n : 39;
		memcpy(error, line + 6, n);
		error[n] = '\0';
	}
	return false;
}

/* -- interrupts */

/* GICv3, Arm IHI 0069. */
#define GICD_CTLR_RWP		(1u << 31)
#define GICD_ISPENDR		0x0200
#define GICD_ICFGR		0x0c00
#define GICR_STRIDE		0x20000
#define GICR_SGI_BASE		0x10000

static u32 rd(u64 address) { return *(volatile u32 *)address; }
static void wr(u64 address, u32 val) { *(volatile u32 *)address = val; }

static u64 bank(struct pe *p, u32 intid)
{
	return intid < 32 ? platform.gicr + p->cpu->index * GICR_STRIDE + GICR_SGI_BASE : platform.gicd;
}

static void make_edge(struct pe *p, u32 intid)
{
	u64 address = bank(p, intid) + GICD_ICFGR + intid / 16 * 4;

	wr(address, rd(address) | 2u << intid % 16 * 2);
}

/* The interrupts of the events that were bound last. */
#define MAX_BOUND 16
static struct { u32 event, intid; } bound[MAX_BOUND];
static u32 nr_bound;

static u32 interrupt_of(u32 event)
{
	/* From the last one back: numbers are given out again, for other interrupts. */
	for (u32 i = 1; i <= nr_bound && i <= MAX_BOUND; i++)
		if (bound[(nr_bound - i) % MAX_BOUND].event == event)
			return bound[(nr_bound - i) % MAX_BOUND].intid;
	return 0;
}

static bool raise(u32 intid, struct pe *p)
{
	if (platform.gicd) {
		wr(bank(p, intid) + GICD_ISPENDR + intid / 32 * 4, 1u << intid % 32);
		return true;
	}
	if (!platform.host)
		return false;
	return host_ask(NULL, NULL, "interrupt %u %lu", intid, p->index);
}

/* The firmware's own call for that.  It does not come back before a handler that it enters at once has ended. */
static bool raise_by_call(u32 event, struct pe *p)
{
	u64 depth = p->depth;
	struct command *c;

	if (p == this_pe())
		return sdei1(platform.raise, event) == 0;
	c = post_call(p, platform.raise, event);
	(void)WAIT(c->done || p->depth != depth);
	return !c->done || c->result == 0;
}

bool raise_event(u32 event, struct pe *p)
{
	u32 intid = interrupt_of(event);

	if (platform.raise && event && raise_by_call(event, p))
		return true;
	if (intid)
		return raise(intid, p);
	if (sdei2(SDEI_EVENT_SIGNAL, event, p->mpidr) == SDEI_SUCCESS)
		return true;
	if (!platform.host || !event)
		return false;
	if (call_on(&pes[0], SDEI_EVENT_GET_INFO, event, SDEI_INFO_TYPE, 0, 0, 0) == 1)
		return host_ask(NULL, NULL, "inject 0x%x any", event);
	return host_ask(NULL, NULL, "inject 0x%x %lu", event, p->index);
}

bool trigger(u32 event, struct pe *p)
{
	if (failed())
		return false;
	if (raise_event(event, p))
		return !failed();
	if (!event)
		FAIL("EVENT_SIGNAL of event 0 for PE %lu is refused", p->index);
	if (!failed())
		skip("nothing here raises event 0x%x", event);
	return false;
}

u32 bind_free(struct pe *p, bool shared)
{
	const u32 *intids = shared ? platform.spis : platform.ppis;
	u32 nr = shared ? platform.nr_spis : platform.nr_ppis;
	s64 ret = 0;

	for (u32 i = 0; i < nr; i++) {
		ret = call_on(p, SDEI_INTERRUPT_BIND, intids[i], 0, 0, 0, 0);
		if (ret < 0)
			continue;
		if (platform.gicd)
			for (u32 k = 0; k < (shared ? 1 : nr_pes); k++)
				make_edge(&pes[k], intids[i]);
		bound[nr_bound % MAX_BOUND].event = (u32)ret;
		bound[nr_bound++ % MAX_BOUND].intid = intids[i];
		return (u32)ret;
	}
	skip("no %s can be bound here: %s", shared ? "SPI" : "PPI", sdei_error_name(ret));
	return NO_EVENT;
}

u32 platform_event(u64 kind)
{
	static const char *const names[] = { "private normal", "private critical", "shared normal", "shared critical" };
	u32 event = platform.events[kind >> 1][kind & 1][0];

	if (event == NO_EVENT)
		skip("no %s event on this platform", names[kind]);
	return event;
}

u32 shared_event(bool critical)
{
	if (!critical && SHARED_NORMAL(0) == NO_EVENT)
		return bind_free(&pes[0], true);
	return platform_event(critical ? 3 : 2);
}

/* -- finding all that */

static bool next_number(const char **s, size_t *len, u64 *val)
{
	size_t n = 0;

	while (n < *len && (*s)[n] != ',')
		n++;
	if (!n || !parse_u64(*s, n, val))
		return false;
	*s += n;
	*len -= n;
	if (*len) {
		(*s)++;
		(*len)--;
	}
	return true;
}

static void read_numbers(const char *key, const char *otherwise, u32 *to, u32 *nr, u32 max)
{
	const char *s;
	size_t len;
	u64 val;

	if (!arg_str(key, &s, &len)) {
		s = otherwise;
		len = strlen(otherwise);
	}
	while (len) {
		if (!next_number(&s, &len, &val))
			result_failed("bootargs: %s is no list of numbers", key);
		if (*nr < max)
			to[(*nr)++] = (u32)val;
	}
}

static void sort_event(u32 event)
{
	s64 shared = sdei2(SDEI_EVENT_GET_INFO, event, SDEI_INFO_TYPE);
	s64 critical = sdei2(SDEI_EVENT_GET_INFO, event, SDEI_INFO_PRIORITY);

	if ((shared != 0 && shared != 1) || (critical != 0 && critical != 1)) {
		print("# event 0x%x of bootargs: EVENT_GET_INFO says %ld and %ld\n", event, shared, critical);
		return;
	}
	if (platform.nr[shared][critical] < 2)
		platform.events[shared][critical][platform.nr[shared][critical]++] = event;
}

static void find_gic(void)
{
	struct fdt f;
	u32 node, len;
	const u8 *reg;

	if (!fdt_open(&f, machine.dtb))
		return;
	node = fdt_node(&f, "/intc", 5);
	if (!node || !fdt_prop_is(&f, node, "compatible", "arm,gic-v3"))
		return;
	/* The distributor, then the redistributors; addresses and sizes have two cells. */
	reg = fdt_prop(&f, node, "reg", &len);
	if (!reg || len < 32 || !fdt_reg(&f, node, 2, &platform.gicd))
		return;
	for (u32 i = 16; i < 24; i++)
		platform.gicr = platform.gicr << 8 | reg[i];
}

void platform_init(void)
{
	u32 events[16], nr = 0;
	s64 slots;

	for (u32 i = 0; i < 8; i++)
		platform.events[i / 4][i / 2 % 2][i % 2] = NO_EVENT;
	platform.version = (u64)sdei0(SDEI_VERSION);
	slots = sdei1(SDEI_FEATURES, SDEI_FEATURE_BIND_SLOTS);
	if (slots > 0) {
		platform.private_slots = slots & 0xffff;
		platform.shared_slots = slots >> 16 & 0xffff;
	}
	platform.relative = sdei1(SDEI_FEATURES, SDEI_FEATURE_RELATIVE_MODE) == 1;
	platform.host = arg_is("host", "1");
	read_numbers("ppis", "16,17,18,19,20,21,22,24", platform.ppis, &platform.nr_ppis, 8);
	read_numbers("spis", "130,131,132,133,134,135,136,137", platform.spis, &platform.nr_spis, 8);
	platform.raise = (u32)arg_u64("raise", 0);
	if (!arg_is("gic", "no"))
		find_gic();
	read_numbers("events", "", events, &nr, 16);
	sort_event(0);
	for (u32 i = 0; i < nr; i++)
		sort_event(events[i]);
}
