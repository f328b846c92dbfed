// SPDX-License-Identifier: Apache-2.0
#include "guest.h"
#include "smccc.h"

s64 psci_cpu_on(u64 mpidr, u64 entry, u64 context)
{
	struct smccc_regs r = { { PSCI_CPU_ON64, mpidr, entry, context } };

	smccc(machine.psci_smc, &r);
	return (s64)r.x[0];
}

void psci_system_off(void)
{
	struct smccc_regs r = { { PSCI_SYSTEM_OFF } };

	smccc(machine.psci_smc, &r);
	for (;;)		/* a firmware without SYSTEM_OFF: nothing is left to do */
		__asm__ volatile("wfi");
}
