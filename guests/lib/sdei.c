// SPDX-License-Identifier: Apache-2.0
#include "sdei.h"
#include "smccc.h"

s64 sdei_call(u32 id, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	struct smccc_regs r = { { id, a1, a2, a3, a4, a5 } };

	smccc(machine.sdei_smc, &r);
	return (s64)r.x[0];
}

const char *sdei_call_name(u32 id)
{
	static const char *const names[] = {
		"VERSION", "EVENT_REGISTER", "EVENT_ENABLE", "EVENT_DISABLE", "EVENT_CONTEXT", "EVENT_COMPLETE",
		"EVENT_COMPLETE_AND_RESUME", "EVENT_UNREGISTER", "EVENT_STATUS", "EVENT_GET_INFO",
		"EVENT_ROUTING_SET", "PE_MASK", "PE_UNMASK", "INTERRUPT_BIND", "INTERRUPT_RELEASE", "EVENT_SIGNAL",
		"FEATURES", "PRIVATE_RESET", "SHARED_RESET",
	};
	u32 n = id - SDEI_VERSION;

	return n < sizeof(names) / sizeof(names[0]) ? names[n] : "unknown call";
}

const char *sdei_error_name(s64 result)
{
	switch (result) {
	case 0:
		return "SUCCESS";
	case -1:
		return "NOT_SUPPORTED";
	case -2:
		return "INVALID_PARAMETERS";
	case -3:
		return "DENIED";
	case -5:
		return "PENDING";
	case -10:
		return "OUT_OF_RESOURCE";
	default:
		return result < 0 ? "unknown error" : "unexpected success value";
	}
}

/* A successful completion goes back to the interrupted code. */
__attribute__((noreturn)) void sdei_complete_returned(s64 result)
{
	result_failed("CPU#%lu: completing an event returned %s (%ld)", this_cpu()->index, sdei_error_name(result),
		      result);
}
