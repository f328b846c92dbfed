// SPDX-License-Identifier: Apache-2.0
/*
 * Loops to measure a hypervisor with, on the boot CPU alone.  The clock is the host's: BENCH_START and BENCH_STOP
 * (HVC function ids that nobody implements) mark where the loop begins and ends.
 *
 * bootargs: loop=version|status|enable|signal|context|bare|spin (default version)   count=N (default 1000)
 */
#include "bench.h"
#include "sdei.h"

static void must(const char *what, s64 ret)
{
	if (ret < 0)
		result_failed("%s: %s", what, sdei_error_name(ret));
}

void guest_main(struct cpu *cpu)
{
	static const struct {
		const char *name;
		u32 id;		/* of the call in the loop */
	} loops[] = {
		{ "version", SDEI_VERSION }, { "status", SDEI_EVENT_STATUS }, { "enable", SDEI_EVENT_ENABLE },
		{ "signal", SDEI_EVENT_SIGNAL }, { "context", SDEI_EVENT_CONTEXT },
		{ "bare", BENCH_BARE }, { "spin", 0 },
	};
	const u32 n = sizeof(loops) / sizeof(loops[0]);
	const char *name = "version";
	size_t len = strlen(name);
	u64 (*loop)(u64 id, u64 affinity, u64 count);
	u64 count = arg_u64("count", 1000), events;
	u32 i;

	(void)arg_str("loop", &name, &len);
	for (i = 0; i < n && !str_is(name, len, loops[i].name); i++)
		;
	if (i == n)
		result_failed("bootargs: no such loop");
	print("\n    bench: loop=%s count=%lu\n\n", loops[i].name, count);
	if (!machine.has_sdei && loops[i].id != BENCH_BARE)
		result_failed("no /firmware/sdei in the device tree");

	if (loops[i].id != BENCH_BARE && loops[i].id != SDEI_VERSION) {
		u64 handler = (u64)(machine.sdei_smc ? bench_handler_smc : bench_handler_hvc);

		if (loops[i].id == SDEI_EVENT_CONTEXT)
			handler = (u64)bench_context;
		must("EVENT_REGISTER", sdei_call(SDEI_EVENT_REGISTER, 0, handler, count, SDEI_RM_ANY, 0));
		must("EVENT_ENABLE", sdei1(SDEI_EVENT_ENABLE, 0));
		must("PE_UNMASK", sdei0(SDEI_PE_UNMASK));
	}
	if (!loops[i].id)
		bench_spin();
	if (loops[i].id == SDEI_EVENT_CONTEXT) {
		must("EVENT_SIGNAL", sdei2(SDEI_EVENT_SIGNAL, 0, cpu->mpidr));
		result_ok();
	}
	loop = machine.sdei_smc && loops[i].id != BENCH_BARE ? bench_loop_smc : bench_loop_hvc;
	events = loop(loops[i].id, cpu->mpidr, count);
	if (loops[i].id == SDEI_EVENT_SIGNAL && events != count)
		result_failed("%lu events were handled instead of %lu", events, count);
	result_ok();
}
