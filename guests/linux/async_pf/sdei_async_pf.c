// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Asynchronous page faults for a kernel that knows nothing of them.
 *
 * The hypervisor tells by an SDEI event that the page which the current task has just touched is not there yet, and by an
 * interrupt that it has come.  In between the task sleeps, and others run.
 *
 *	not present	the event's callback, as an NMI: claims a slot for the token, and has the task stop on its way back to
 *			user mode (task_work); no locks, no memory
 *	stop		the task sleeps in wait_for_page(), killable
 *	ready		a per-CPU interrupt: tokens stand in a ring in the shared page; whoever sleeps on one is woken
 *
 * A task that is woken tries its access again, so waking one too early does no harm; waking one never would.
 * What the hypervisor is told, and where, is in docs/async-page-faults.md.
 */
#define pr_fmt(fmt) "sdei_async_pf: " fmt

#include <linux/arm-smccc.h>
#include <linux/arm_sdei.h>
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_irq.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/reboot.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/suspend.h>
#include <linux/task_work.h>
#include <linux/version.h>
#include <asm/ptrace.h>

#define ASYNC_PF		ARM_SMCCC_CALL_VAL(ARM_SMCCC_FAST_CALL, ARM_SMCCC_SMC_32, ARM_SMCCC_OWNER_VENDOR_HYP, 2)
#define ASYNC_PF_VERSION	0
#define ASYNC_PF_SDEI		2
#define ASYNC_PF_IRQ		3
#define ASYNC_PF_ENABLE		4
#define ASYNC_PF_FEATURES	6

#define FEATURE_REFUSE		BIT(0)
#define FEATURE_RING		BIT(1)
#define CONTROL_ENABLED		BIT(0)
#define CONTROL_RING		BIT(2)
#define REASON_NOT_PRESENT	1
#define REASON_REFUSED		3
#define TOKEN_WAKE_ALL		0xffffffffU

#define MAX_SLOTS		64
#define RING_ENTRIES		128
#define FIRST_PPI		16

/* From 6.12 on NMIs have a way of their own; before, TWA_RESUME was a cmpxchg and a flag, if the task is the current one. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#define STOP_CURRENT	TWA_NMI_CURRENT
#else
#define STOP_CURRENT	TWA_RESUME
#endif

static unsigned int slots = MAX_SLOTS;
module_param(slots, uint, 0444);
MODULE_PARM_DESC(slots, "faults of a CPU that can be waited for at once, 1 to 64 (default: 64); beyond, they are refused");

static bool refuse = true;
module_param(refuse, bool, 0644);
MODULE_PARM_DESC(refuse, "have the hypervisor wait for the page if no other task could run meanwhile (default: yes)");

/* What we share with the hypervisor, one for each CPU. */
struct block {
	u32 reason, token;		/* the mailbox: we empty it */
	u32 head, tail;			/* of the ring: the hypervisor's, ours */
	u32 unused[12];
	u32 ring[RING_ENTRIES];
};

struct slot {
	struct callback_head work;
	atomic_t busy;			/* claimed by an NMI; given back once the page has come and nobody sleeps here */
	raw_spinlock_t lock;		/* of what follows */
	u32 token;
	bool ready, orphan;		/* the page has come; the task was about to end and does not wait for it */
	struct task_struct *task;	/* who sleeps */
};

struct counts {
	u64 told, slept, early, refused, full, ended, ready, unknown, wake_all;
};

struct pe {
	struct block *block;
	struct slot slots[MAX_SLOTS];
	struct counts counts;
};

static DEFINE_PER_CPU(struct pe *, cpus);
static DEFINE_PER_CPU(int, cookie);	/* request_percpu_irq() wants one */
static unsigned int irq;
static u32 event;
static int hotplug_state;
static bool asleep;			/* the system is, or about to be; CPUs neither come nor go when that changes */

static struct {				/* the kernel's SDEI driver, which exports nothing */
	int (*event_register)(u32 event, sdei_event_callback *callback, void *arg);
	int (*event_unregister)(u32 event);
	int (*event_enable)(u32 event);
	int (*event_disable)(u32 event);
} sdei;

/* ------------------------------------------------------------------------------------------------------ the hypervisor */

static int call(u32 function, u64 argument, u32 *value)
{
	struct arm_smccc_res res;

	arm_smccc_1_1_invoke(ASYNC_PF, function, lower_32_bits(argument), upper_32_bits(argument), &res);
	if (value)
		*value = res.a1;
	return (long)res.a0 < 0 ? -EOPNOTSUPP : 0;
}

/* ------------------------------------------------------------------------------------------------------------- waiting */

static void give_back(struct slot *slot)
{
	atomic_set_release(&slot->busy, 0);
}

/* On the way back to user mode; also in get_signal() and do_exit(), where a task that is to end must not sleep. */
static void wait_for_page(struct callback_head *work)
{
	struct slot *slot = container_of(work, struct slot, work);
	struct pe *cpu = raw_cpu_read(cpus);
	bool slept = false;

	raw_spin_lock_irq(&slot->lock);
	slot->task = current;
	while (!slot->ready) {
		if ((current->flags & PF_EXITING) || fatal_signal_pending(current)) {
			slot->orphan = true;
			break;
		}
		set_current_state(TASK_KILLABLE);
		raw_spin_unlock_irq(&slot->lock);
		io_schedule();
		slept = true;
		raw_spin_lock_irq(&slot->lock);
	}
	__set_current_state(TASK_RUNNING);
	slot->task = NULL;
	if (slot->orphan)
		cpu->counts.ended++;
	else if (slept)
		cpu->counts.slept++;
	else
		cpu->counts.early++;	/* the loop that brought us here has let others run before */
	if (slot->ready)
		give_back(slot);
	raw_spin_unlock_irq(&slot->lock);
}

/* Whoever waits in a slot need not do so any longer. With interrupts off. */
static void page_is_there(struct slot *slot)
{
	slot->ready = true;
	if (slot->orphan)
		give_back(slot);
	else if (slot->task)
		wake_up_process(slot->task);
	/* else it has not gone to sleep yet, and will not */
}

static void wake_all(struct pe *cpu)
{
	unsigned long flags;
	unsigned int i;

	cpu->counts.wake_all++;
	for (i = 0; i < slots; i++) {
		struct slot *slot = &cpu->slots[i];

		raw_spin_lock_irqsave(&slot->lock, flags);
		if (atomic_read_acquire(&slot->busy) && !slot->ready)
			page_is_there(slot);
		raw_spin_unlock_irqrestore(&slot->lock, flags);
	}
}

static bool wake(struct pe *cpu, u32 token)
{
	bool found = false;
	unsigned int i;

	for (i = 0; i < slots && !found; i++) {
		struct slot *slot = &cpu->slots[i];

		if (!atomic_read_acquire(&slot->busy) || READ_ONCE(slot->token) != token)
			continue;
		raw_spin_lock(&slot->lock);
		found = atomic_read(&slot->busy) && slot->token == token && !slot->ready;
		if (found)
			page_is_there(slot);
		raw_spin_unlock(&slot->lock);
	}
	return found;
}

/* --------------------------------------------------------------------------------------------------- what we are told */

static struct slot *claim(struct pe *cpu)
{
	unsigned int i;

	for (i = 0; i < slots; i++)
		if (!atomic_cmpxchg(&cpu->slots[i].busy, 0, 1))
			return &cpu->slots[i];
	cpu->counts.full++;
	return NULL;
}

static bool stop_current(struct pe *cpu, u32 token)
{
	struct slot *slot = claim(cpu);

	if (!slot)
		return false;
	slot->ready = slot->orphan = false;
	slot->task = NULL;
	WRITE_ONCE(slot->token, token);
	init_task_work(&slot->work, wait_for_page);
	if (!task_work_add(current, &slot->work, STOP_CURRENT))
		return true;
	give_back(slot);
	return false;
}

/* The page that the current task has touched is not there. An NMI. */
static int not_present(u32 number, struct pt_regs *regs, void *argument)
{
	struct pe *cpu = __this_cpu_read(cpus);
	struct block *block = cpu->block;

	if (READ_ONCE(block->reason) != REASON_NOT_PRESENT)
		return 0;
	if (user_mode(regs) && !(current->flags & (PF_EXITING | PF_KTHREAD)) && !(refuse && single_task_running()) &&
	    stop_current(cpu, READ_ONCE(block->token))) {
		cpu->counts.told++;
		WRITE_ONCE(block->token, 0);
		smp_store_release(&block->reason, 0);
	} else {
		/* Without an answer there would never be another one. The hypervisor waits for the page, and empties the mailbox. */
		cpu->counts.refused++;
		smp_store_release(&block->reason, REASON_REFUSED);
	}
	return 0;
}

static irqreturn_t ready(int number, void *unused)
{
	struct pe *cpu = __this_cpu_read(cpus);
	struct block *block = cpu->block;
	u32 tail = block->tail;

	while (tail != smp_load_acquire(&block->head)) {
		u32 token = READ_ONCE(block->ring[tail % RING_ENTRIES]);

		if (token == TOKEN_WAKE_ALL)
			wake_all(cpu);
		else if (wake(cpu, token))
			cpu->counts.ready++;
		else
			cpu->counts.unknown++;
		smp_store_release(&block->tail, ++tail);
	}
	return IRQ_HANDLED;
}

/* --------------------------------------------------------------------------------------------------- CPUs come and go */

static void tell_no_more(void)
{
	call(ASYNC_PF_ENABLE, 0, NULL);
}

static int begin(void)
{
	struct block *block = this_cpu_read(cpus)->block;
	int err;

	memset(block, 0, sizeof(*block));
	enable_percpu_irq(irq, IRQ_TYPE_NONE);
	err = call(ASYNC_PF_ENABLE, virt_to_phys(block) | CONTROL_ENABLED | CONTROL_RING, NULL);
	if (err)
		disable_percpu_irq(irq);
	return err;
}

/* Tokens are void from here on, so nobody would wake those who wait for them. */
static void end(void)
{
	tell_no_more();
	disable_percpu_irq(irq);
	wake_all(this_cpu_read(cpus));
}

static int cpu_comes(unsigned int number)
{
	return asleep ? 0 : begin();
}

static int cpu_goes(unsigned int number)
{
	if (!asleep)
		end();
	return 0;
}

/*
 * The whole system goes to sleep, perhaps to wake up under another hypervisor, which knows nothing of us: with the memory of
 * now, to which nobody may have written meanwhile.  A task that waited for a page could not be frozen either.
 */
static void cpu_falls_asleep(void *unused)
{
	end();
}

static void cpu_wakes_up(void *unused)
{
	int err = begin();

	if (err)
		pr_err("CPU %d is not told of pages any more: error %d\n", smp_processor_id(), err);
}

static int sleeps(struct notifier_block *block, unsigned long action, void *unused)
{
	bool sleep;

	switch (action) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:	/* another kernel takes this one's place */
	case PM_SUSPEND_PREPARE:
		sleep = true;
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
	case PM_POST_SUSPEND:
		sleep = false;
		break;
	default:
		return NOTIFY_DONE;
	}
	cpus_read_lock();
	if (sleep != asleep) {
		asleep = sleep;
		on_each_cpu(sleep ? cpu_falls_asleep : cpu_wakes_up, NULL, 1);
	}
	cpus_read_unlock();
	return NOTIFY_OK;
}

static struct notifier_block sleep_notifier = { .notifier_call = sleeps };

/* The next kernel's memory is not to be written to. */
static void cpu_reboots(void *unused)
{
	tell_no_more();
}

static int reboots(struct notifier_block *block, unsigned long action, void *unused)
{
	on_each_cpu(cpu_reboots, NULL, 1);
	return NOTIFY_DONE;
}

static struct notifier_block reboot_notifier = { .notifier_call = reboots };

/* ------------------------------------------------------------------------------------------------------------ counting */

static unsigned int busy_slots(const struct pe *cpu)
{
	unsigned int i, busy = 0;

	for (i = 0; i < slots; i++)
		busy += atomic_read(&cpu->slots[i].busy);
	return busy;
}

static int show_counts(char *buffer, const struct kernel_param *unused)
{
	int number, length = 0;

	for_each_possible_cpu(number) {
		const struct pe *cpu = per_cpu(cpus, number);
		const struct counts *c = &cpu->counts;

		length += sysfs_emit_at(buffer, length,
					"cpu=%d told=%llu slept=%llu early=%llu ready=%llu refused=%llu full=%llu ended=%llu unknown=%llu wake_all=%llu waiting=%u\n",
					number, c->told, c->slept, c->early, c->ready, c->refused, c->full, c->ended, c->unknown, c->wake_all,
					busy_slots(cpu));
	}
	return length;
}

static const struct kernel_param_ops counts_ops = { .get = show_counts };
module_param_cb(counts, &counts_ops, NULL, 0444);
MODULE_PARM_DESC(counts, "what has happened, a line for each CPU");

/* --------------------------------------------------------------------------------------------------- beginning and end */

static void *symbol(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	void *address;

	if (register_kprobe(&probe))
		return NULL;
	address = probe.addr;
	unregister_kprobe(&probe);
	return address;
}

static unsigned int map_interrupt(u32 intid)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, "arm,gic-v3");
	struct of_phandle_args args = { .np = node, .args_count = 3, .args = { 1, intid - FIRST_PPI, IRQ_TYPE_EDGE_RISING } };
	unsigned int number;

	if (!node || intid < FIRST_PPI)
		return 0;
	number = irq_create_of_mapping(&args);
	of_node_put(node);
	return number;
}

static int find_service(void)
{
	u32 version, features, intid;

	if (call(ASYNC_PF_VERSION, 0, &version) || version >> 16 != 1 || call(ASYNC_PF_FEATURES, 0, &features) ||
	    (features & (FEATURE_REFUSE | FEATURE_RING)) != (FEATURE_REFUSE | FEATURE_RING) ||
	    call(ASYNC_PF_SDEI, 0, &event) || call(ASYNC_PF_IRQ, 0, &intid)) {
		pr_err("the hypervisor has no asynchronous page faults by SDEI\n");
		return -ENODEV;
	}
	sdei.event_register = symbol("sdei_event_register");
	sdei.event_unregister = symbol("sdei_event_unregister");
	sdei.event_enable = symbol("sdei_event_enable");
	sdei.event_disable = symbol("sdei_event_disable");
	if (!sdei.event_register || !sdei.event_unregister || !sdei.event_enable || !sdei.event_disable) {
		pr_err("the kernel has no SDEI driver\n");
		return -ENODEV;
	}
	irq = map_interrupt(intid);
	if (!irq) {
		pr_err("interrupt %u cannot be had\n", intid);
		return -ENODEV;
	}
	return 0;
}

static void free_cpus(void)
{
	int number;

	for_each_possible_cpu(number) {
		struct pe *cpu = per_cpu(cpus, number);

		if (cpu)
			free_page((unsigned long)cpu->block);
		kfree(cpu);
	}
}

static int make_cpus(void)
{
	int number, i;

	for_each_possible_cpu(number) {
		struct pe *cpu = kzalloc(sizeof(*cpu), GFP_KERNEL);

		per_cpu(cpus, number) = cpu;
		if (cpu)
			cpu->block = (struct block *)get_zeroed_page(GFP_KERNEL);
		if (!cpu || !cpu->block)
			return -ENOMEM;
		for (i = 0; i < MAX_SLOTS; i++)
			raw_spin_lock_init(&cpu->slots[i].lock);
	}
	return 0;
}

static void unregister_event(void)
{
	sdei.event_disable(event);
	while (sdei.event_unregister(event) == -EINPROGRESS)	/* its handler runs somewhere */
		msleep(1);
}

static void let_everybody_go(void)
{
	int number;

	for_each_possible_cpu(number)
		while (busy_slots(per_cpu(cpus, number)))
			msleep(1);
	synchronize_rcu_tasks();	/* the last one may still be on its way out of wait_for_page() */
}

static int __init async_pf_init(void)
{
	int err;

	if (!slots || slots > MAX_SLOTS) {
		pr_err("slots=%u: 1 to %u faults of a CPU can be waited for\n", slots, (unsigned int)MAX_SLOTS);
		return -EINVAL;
	}
	err = find_service();
	if (err)
		return err;
	err = make_cpus();
	if (err)
		goto out_cpus;
	err = request_percpu_irq(irq, ready, "sdei_async_pf", &cookie);
	if (err)
		goto out_cpus;
	/* Before ENABLE, which chooses the event to tell by only where it is registered. */
	err = sdei.event_register(event, not_present, NULL);
	if (err)
		goto out_irq;
	err = sdei.event_enable(event);
	if (err)
		goto out_event;
	err = hotplug_state = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "sdei_async_pf:online", cpu_comes, cpu_goes);
	if (err < 0)
		goto out_event;
	register_pm_notifier(&sleep_notifier);
	register_reboot_notifier(&reboot_notifier);
	pr_info("event 0x%x, interrupt %u, %u slots a CPU\n", event, irq, slots);
	return 0;

out_event:
	unregister_event();
	let_everybody_go();
out_irq:
	free_percpu_irq(irq, &cookie);
out_cpus:
	free_cpus();
	return err;
}

static void __exit async_pf_exit(void)
{
	unregister_reboot_notifier(&reboot_notifier);
	unregister_pm_notifier(&sleep_notifier);
	cpuhp_remove_state(hotplug_state);
	unregister_event();
	let_everybody_go();
	free_percpu_irq(irq, &cookie);
	free_cpus();
}

module_init(async_pf_init);
module_exit(async_pf_exit);
MODULE_DESCRIPTION("asynchronous page faults by SDEI");
MODULE_LICENSE("Dual MIT/GPL");
