// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * An SDEI client: registers and enables events through the kernel's own driver (drivers/firmware/arm_sdei.c), reports
 * every delivery, counts, and has controls in /proc/sdei_client/. README.md lists parameters and files.
 */
#define pr_fmt(fmt) "sdei_client: " fmt

#include <linux/arm-smccc.h>
#include <linux/arm_sdei.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/of.h>
#include <linux/percpu.h>
#include <linux/printk.h>
#include <linux/proc_fs.h>
#include <linux/ptrace.h>
#include <linux/seq_file.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>
#include <asm/sysreg.h>

/* Named since Linux has a user of it (v7.3). */
#ifndef SDEI_1_0_FN_SDEI_EVENT_SIGNAL
#define SDEI_1_0_FN_SDEI_EVENT_SIGNAL	SDEI_1_0_FN(0x0F)
#endif

#define MAX_EVENTS	8
#define MAX_SPIN_MS	60000
#define CONTEXT_REGS	18	/* EVENT_CONTEXT gives x0..x17: DEN0054C 5.1.8 */

/* The handler's argument: a value that is seen to have made the whole way to the firmware and back. */
#define PARAMETER	((void *)0xdabfdabfUL)

static unsigned int events[MAX_EVENTS];
static int nr_events;
module_param_array(events, uint, &nr_events, 0444);
MODULE_PARM_DESC(events, "event numbers to register and enable, at most 8 (default: 0)");

static bool quiet;
module_param(quiet, bool, 0644);
MODULE_PARM_DESC(quiet, "count deliveries, do not print them");

/* ------------------------------------------------------------------ the kernel's SDEI driver, which exports nothing */

static struct {
	int (*event_register)(u32 event, sdei_event_callback *callback, void *arg);
	int (*event_unregister)(u32 event);
	int (*event_enable)(u32 event);
	int (*event_disable)(u32 event);
	u64 (*cpu_logical_map)(unsigned int cpu);
} kernel;

/* kallsyms_lookup_name() is not exported since v5.7; placing a probe looks the name up as well. */
static void *symbol(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	void *address;
	int err = register_kprobe(&probe);

	if (err) {
		pr_err("the kernel has no usable symbol %s (%d)\n", name, err);
		return NULL;
	}
	address = probe.addr;
	unregister_kprobe(&probe);
	return address;
}

static int find_kernel_functions(void)
{
	kernel.event_register = symbol("sdei_event_register");
	kernel.event_unregister = symbol("sdei_event_unregister");
	kernel.event_enable = symbol("sdei_event_enable");
	kernel.event_disable = symbol("sdei_event_disable");
	kernel.cpu_logical_map = symbol("cpu_logical_map");
	if (!kernel.event_register || !kernel.event_unregister || !kernel.event_enable || !kernel.event_disable ||
	    !kernel.cpu_logical_map)
		return -ENOENT;
	return 0;
}

/* ---------------------------------------------------------------------------------------- calls into the firmware */

static bool use_smc;

/* The way the driver calls: what the device tree says, else (ACPI) the way PSCI is called. */
static void find_conduit(void)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, "arm,sdei-1.0");

	if (node)
		use_smc = of_property_match_string(node, "method", "smc") >= 0;
	else
		use_smc = arm_smccc_1_1_get_conduit() == SMCCC_CONDUIT_SMC;
	of_node_put(node);
}

/* Safe anywhere, NMI included: one instruction between loads and stores of registers. */
static long firmware_call(unsigned long function, unsigned long arg0, unsigned long arg1)
{
	struct arm_smccc_res res;

	if (use_smc)
		arm_smccc_smc(function, arg0, arg1, 0, 0, 0, 0, 0, &res);
	else
		arm_smccc_hvc(function, arg0, arg1, 0, 0, 0, 0, 0, &res);
	return res.a0;
}

static int to_errno(long result)
{
	switch (result) {
	case SDEI_SUCCESS:
		return 0;
	case SDEI_NOT_SUPPORTED:
		return -EOPNOTSUPP;
	case SDEI_INVALID_PARAMETERS:
		return -EINVAL;
	case SDEI_DENIED:
		return -EPERM;
	case SDEI_PENDING:
		return -EINPROGRESS;
	case SDEI_OUT_OF_RESOURCE:
		return -ENOMEM;
	}
	return -EIO;
}

/* --------------------------------------------------------------------------------------------- slots and counters */

enum state { IN_USER, IN_KERNEL, IN_MASKED, NR_STATES };

struct counters {
	unsigned long of[MAX_EVENTS][NR_STATES];
};

/*
 * Only the callback writes these, on its own CPU, by this_cpu_inc(): a critical event that interrupts a normal one's
 * callback in the middle of the increment costs neither of them its count. A reset moves the base instead.
 */
static DEFINE_PER_CPU(struct counters, counted);
static DEFINE_PER_CPU(struct counters, base);

static struct slot {
	bool used;
	u32 event;
} slots[MAX_EVENTS];

/* Serialises everything but the callback. A slot does not change while its event is registered. */
static DEFINE_MUTEX(lock);

static int slot_of(u32 event)
{
	int i;

	for (i = 0; i < MAX_EVENTS; i++)
		if (READ_ONCE(slots[i].used) && slots[i].event == event)
			return i;
	return -ENOENT;
}

static unsigned long count_of(int slot, enum state state, int cpu)
{
	return READ_ONCE(per_cpu(counted, cpu).of[slot][state]) - per_cpu(base, cpu).of[slot][state];
}

static void rebase(int slot)
{
	int cpu, state;

	for_each_possible_cpu(cpu)
		for (state = 0; state < NR_STATES; state++)
			per_cpu(base, cpu).of[slot][state] = READ_ONCE(per_cpu(counted, cpu).of[slot][state]);
}

static unsigned long events_here(void)
{
	unsigned long sum = 0;
	int slot, state;

	for (slot = 0; slot < MAX_EVENTS; slot++)
		for (state = 0; state < NR_STATES; state++)
			sum += READ_ONCE(this_cpu_ptr(&counted)->of[slot][state]);
	return sum;
}

/* ------------------------------------------------------------------------------------------ the callback, as an NMI */

static enum state state_of(const struct pt_regs *regs)
{
	if (user_mode(regs))
		return IN_USER;
	return regs->pstate & PSR_I_BIT ? IN_MASKED : IN_KERNEL;
}

static void print_registers(const char *title, const u64 *x, int count)
{
	int i;

	for (i = 0; i < count; i += 4, title = "") {
		if (count - i >= 4)
			printk(KERN_ALERT "%-8s %016llx %016llx %016llx %016llx\n", title, x[i], x[i + 1], x[i + 2], x[i + 3]);
		else if (count - i == 3)
			printk(KERN_ALERT "%-8s %016llx %016llx %016llx\n", title, x[i], x[i + 1], x[i + 2]);
		else if (count - i == 2)
			printk(KERN_ALERT "%-8s %016llx %016llx\n", title, x[i], x[i + 1]);
		else
			printk(KERN_ALERT "%-8s %016llx\n", title, x[i]);
	}
}

/* The layout of the cover letter of the KVM series "Support SDEI Virtualization", section 2.3. */
static void report(u32 event, const struct pt_regs *regs, const void *arg)
{
	u64 context[CONTEXT_REGS];
	unsigned long flags;
	int i;

	for (i = 0; i < CONTEXT_REGS; i++)
		context[i] = firmware_call(SDEI_1_0_FN_SDEI_EVENT_CONTEXT, i, 0);

	/* Keeps the reports of two CPUs apart. The owner may take it again, so a critical event in here is no deadlock. */
	printk_cpu_sync_get_irqsave(flags);
	printk(KERN_ALERT "=========== SDEI Event (CPU#%d) ===========\n", smp_processor_id());
	printk(KERN_ALERT "Event: %016llx  Parameter: %016lx\n", (u64)event, (unsigned long)arg);
	printk(KERN_ALERT "PC:    %016llx  PSTATE: %016llx  SP: %016llx\n", regs->pc, regs->pstate, regs->sp);
	print_registers("Regs:", regs->regs, ARRAY_SIZE(regs->regs));
	print_registers("Context:", context, ARRAY_SIZE(context));
	printk_cpu_sync_put_irqrestore(flags);
}

/* Runs as an NMI on the driver's own stack: no locks, no allocation; printk stores, and prints when it may. */
static int callback(u32 event, struct pt_regs *regs, void *arg)
{
	int slot = slot_of(event);

	if (slot >= 0)
		this_cpu_inc(counted.of[slot][state_of(regs)]);
	if (!READ_ONCE(quiet))
		report(event, regs, arg);
	return 0;
}

/* ---------------------------------------------------------------------------------------- registering and the like */

static int register_event(u32 event)
{
	int slot, err;

	if (slot_of(event) >= 0)
		return -EBUSY;
	for (slot = 0; slot < MAX_EVENTS && slots[slot].used; slot++)
		;
	if (slot == MAX_EVENTS)
		return -ENOSPC;

	/* Before the first delivery can be, which is before the driver's function returns. */
	rebase(slot);
	slots[slot].event = event;
	smp_store_release(&slots[slot].used, true);

	err = kernel.event_register(event, callback, PARAMETER);
	if (err)
		slots[slot].used = false;
	return err;
}

/* A shared event whose handler runs on another CPU is unregistered when that handler is done. */
static int unregister_event(u32 event)
{
	int slot = slot_of(event);
	int tries, err;

	if (slot < 0)
		return slot;
	kernel.event_disable(event);
	for (tries = 0; tries < 200; tries++) {
		err = kernel.event_unregister(event);
		if (err != -EINPROGRESS)
			break;
		msleep(10);
	}
	if (!err)
		slots[slot].used = false;
	return err;
}

static void unregister_all(void)
{
	int slot, err;

	for (slot = 0; slot < MAX_EVENTS; slot++) {
		if (!slots[slot].used)
			continue;
		err = unregister_event(slots[slot].event);
		if (err)
			pr_err("event 0x%x: unregistering failed (%d)\n", slots[slot].event, err);
	}
}

static int register_and_enable(u32 event)
{
	const char *what = "registering";
	int err = register_event(event);

	if (!err) {
		what = "enabling";
		err = kernel.event_enable(event);
	}
	if (err == -EIO)	/* what the driver answers when it has no firmware to call */
		pr_err("no SDEI: the kernel found no firmware that offers it\n");
	else if (err)
		pr_err("event 0x%x: %s failed (%d)\n", event, what, err);
	else
		pr_info("event 0x%x registered and enabled\n", event);
	return err == -EIO ? -ENODEV : err;
}

/* ---------------------------------------------------------------------------------------------- /proc/sdei_client/ */

static int counts_show(struct seq_file *out, void *unused)
{
	int slot, cpu;

	mutex_lock(&lock);
	for (slot = 0; slot < MAX_EVENTS; slot++) {
		if (!slots[slot].used)
			continue;
		for_each_possible_cpu(cpu) {
			unsigned long user = count_of(slot, IN_USER, cpu);
			unsigned long enabled = count_of(slot, IN_KERNEL, cpu);
			unsigned long masked = count_of(slot, IN_MASKED, cpu);

			seq_printf(out, "event 0x%x cpu %d total %lu user %lu kernel %lu masked %lu\n",
				   slots[slot].event, cpu, user + enabled + masked, user, enabled, masked);
		}
	}
	mutex_unlock(&lock);
	return 0;
}

static int reset_counts(char *text)
{
	int slot;

	mutex_lock(&lock);
	for (slot = 0; slot < MAX_EVENTS; slot++)
		rebase(slot);
	mutex_unlock(&lock);
	return 0;
}

/* "N": the CPU of that number, on line or not. "mpidr VALUE": whatever a test wants the firmware to see. */
static int signal_cpu(char *text)
{
	u64 mpidr;
	unsigned int cpu;

	if (!strncmp(text, "mpidr ", 6)) {
		if (kstrtou64(skip_spaces(text + 6), 0, &mpidr))
			return -EINVAL;
	} else {
		if (kstrtouint(text, 0, &cpu))
			return -EINVAL;
		if (cpu >= nr_cpu_ids || !cpu_possible(cpu))
			return -ENODEV;
		mpidr = kernel.cpu_logical_map(cpu);
	}
	return to_errno(firmware_call(SDEI_1_0_FN_SDEI_EVENT_SIGNAL, 0, mpidr));
}

struct spin {
	unsigned int milliseconds;
	unsigned long arrived;
};

static long spin_here(void *data)
{
	struct spin *spin = data;
	u64 ticks = read_sysreg(cntfrq_el0) * (u64)spin->milliseconds / 1000;
	unsigned long flags, before;
	u64 start;

	local_irq_save(flags);
	before = events_here();
	start = read_sysreg(cntvct_el0);
	do {
		cpu_relax();
		spin->arrived = events_here() - before;
		isb();	/* else the counter may be read early */
	} while (!spin->arrived && read_sysreg(cntvct_el0) - start < ticks);
	local_irq_restore(flags);
	return 0;
}

/* "CPU MILLISECONDS"; returns when the CPU is free again. */
static int spin_cpu(char *text)
{
	struct spin spin = { 0 };
	unsigned int cpu;
	int err = -ENODEV;

	if (sscanf(text, "%u %u", &cpu, &spin.milliseconds) != 2 || spin.milliseconds > MAX_SPIN_MS)
		return -EINVAL;
	cpus_read_lock();
	if (cpu < nr_cpu_ids && cpu_online(cpu)) {
		pr_alert("CPU %u SPINNING with interrupts off for up to %u ms\n", cpu, spin.milliseconds);
		msleep(50);	/* the console may be printing this on the very CPU */
		err = work_on_cpu(cpu, spin_here, &spin);
		pr_alert("CPU %u spun with interrupts off, %lu events arrived meanwhile\n", cpu, spin.arrived);
	}
	cpus_read_unlock();
	return err;
}

static int with_event(char *text, int (*action)(u32 event))
{
	unsigned int event;
	int err;

	if (kstrtouint(text, 0, &event))
		return -EINVAL;
	mutex_lock(&lock);
	err = action(event);
	mutex_unlock(&lock);
	return err;
}

static int register_command(char *text)
{
	return with_event(text, register_event);
}

static int unregister_command(char *text)
{
	return with_event(text, unregister_event);
}

static int enable_command(char *text)
{
	return with_event(text, kernel.event_enable);
}

static int disable_command(char *text)
{
	return with_event(text, kernel.event_disable);
}

static const struct command {
	const char *name;
	int (*run)(char *text);
} commands[] = {
	{ "reset", reset_counts },
	{ "signal", signal_cpu },
	{ "spin", spin_cpu },
	{ "register", register_command },
	{ "unregister", unregister_command },
	{ "enable", enable_command },
	{ "disable", disable_command },
};

static ssize_t command_write(struct file *file, const char __user *from, size_t size, loff_t *position)
{
	const struct command *command = pde_data(file_inode(file));
	char text[64];
	int err;

	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, size))
		return -EFAULT;
	text[size] = '\0';
	err = command->run(strim(text));
	return err ?: size;
}

static const struct proc_ops command_ops = {
	.proc_write = command_write,
	.proc_lseek = noop_llseek,
};

static struct proc_dir_entry *directory;

static int create_files(void)
{
	size_t i;

	directory = proc_mkdir("sdei_client", NULL);
	if (!directory || !proc_create_single("counts", 0444, directory, counts_show))
		return -ENOMEM;
	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (!proc_create_data(commands[i].name, 0200, directory, &command_ops, (void *)&commands[i]))
			return -ENOMEM;
	return 0;
}

/* -------------------------------------------------------------------------------------------------- load and unload */

static int __init client_init(void)
{
	int i, err = find_kernel_functions();

	if (err)
		return err;
	find_conduit();
	if (!nr_events)
		nr_events = 1;	/* event 0, which is what the array holds */
	for (i = 0; i < nr_events && !err; i++)
		err = register_and_enable(events[i]);
	if (!err)
		err = create_files();
	if (err) {
		proc_remove(directory);
		unregister_all();
	}
	return err;
}

static void __exit client_exit(void)
{
	proc_remove(directory);
	unregister_all();
}

module_init(client_init);
module_exit(client_exit);

MODULE_DESCRIPTION("SDEI client that reports and counts events");
MODULE_LICENSE("Dual MIT/GPL");
