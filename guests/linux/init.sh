#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# /init of the guest. What it does is told by words of the kernel's command line; README.md lists them.

PATH=/bin
export PATH
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null

run=shell
events=
client=
quiet=0
secs=
cycles=10
loglevel=1
modules=
victim=late
# What comes after a run that ends by itself.
then=poweroff
for word in $(cat /proc/cmdline); do
    value=${word#*=}
    case $word in
        run=*) run=$value ;;
        then=*) then=$value ;;
        secs=*) secs=$value ;;
        cycles=*) cycles=$value ;;
        client.events=*) events=$value client=yes ;;
        client.quiet=*) quiet=$value ;;
        modules=*) modules=$(echo "$value" | tr , ' ') ;;
        serve.loglevel=*) loglevel=$value ;;
        victim=*) victim=$value ;;
    esac
done

# The terminal behind /dev/console can be a controlling terminal and has settings of its own; /dev/console has not.
for name in $(cat /sys/class/tty/console/active); do
    terminal=/dev/$name
done
exec <"$terminal" >"$terminal" 2>&1

load_client() {
    if insmod /lib/sdei_client.ko events="${events:-0}" quiet="$quiet"; then
        echo "CLIENT-LOADED events=${events:-0}"
    else
        echo "CLIENT-FAILED"
        dmesg | grep 'sdei' | tail -n 2
    fi
}

run_shell() {
    echo "Linux $(uname -r), $(nproc) CPUs; the client: insmod /lib/sdei_client.ko events=0, then /proc/sdei_client/"
    PS1='guest# ' setsid cttyhack sh
}

# One line in, a command; out comes what it prints, and a line with its exit code.
run_serve() {
    # Messages of the kernel would fall into the middle of lines. dmesg has them.
    dmesg -n "$loglevel"
    stty -echo -onlcr -isig -ixon
    echo SERVE-READY
    while IFS= read -r line; do
        sh -c "$line" </dev/null
        echo "<<<EXIT $?>>>"
    done
}

# Prints the numbers of the CPUs that are on line, as 0-3,5 in their file.
online() {
    tr , '\n' </sys/devices/system/cpu/online | while IFS=- read -r first last; do
        seq "$first" "${last:-$first}"
    done
}

run_hotplug() {
    errors=0
    cycle=0
    while [ "$cycle" -lt "$cycles" ]; do
        cycle=$((cycle + 1))
        for state in 0 1; do
            for file in /sys/devices/system/cpu/cpu[1-9]*/online; do
                echo "$state" >"$file" || errors=$((errors + 1))
            done
        done
        echo "HOTPLUG cycle $cycle online $(cat /sys/devices/system/cpu/online)"
    done
    echo "HOTPLUG-DONE cycles=$cycles errors=$errors"
}

# Fork and exec on every CPU, and beside it two programs that watch their registers.
run_load() {
    secs=${secs:-5}
    echo "LOAD-START secs=$secs cpus=$(online | wc -l)"
    for cpu in $(online); do
        mask=$(printf '%x' $((1 << cpu)))
        taskset "$mask" regcheck "$secs" &
        taskset "$mask" regcheck "$secs" syscall &
        taskset "$mask" forkbench for "$secs" | sed "s/.*iterations=\([0-9]*\).*/WORKER $cpu \1/" &
    done
    wait
    echo LOAD-DONE
}

run_demo() {
    secs=${secs:-20}
    cpu=1
    [ -d /sys/devices/system/cpu/cpu1 ] || cpu=0
    # Not on the CPU that is going to be deaf.
    taskset -p 1 $$ >/dev/null
    dmesg | grep 'sdei: SDEIv'
    [ -d /proc/sdei_client ] || load_client
    [ -d /proc/sdei_client ] || return
    echo READY
    echo "CPU $cpu is SPINNING with interrupts off until an event comes, at most $secs s"
    echo "$cpu $((secs * 1000))" >/proc/sdei_client/spin
    sleep 1
    cat /proc/sdei_client/counts
    echo DEMO-DONE
}

# A process that somebody outside is to poison, and what the kernel has said meanwhile: afterwards, and not on the console
# itself, where its lines could fall into the middle of the process's.
run_ras() {
    dmesg -n 1
    dmesg | sed -n '/ACPI: SDEI\|ACPI: HEST\|sdei: SDEIv\|GHES: APEI/s/^\[[^]]*\] /kernel: /p'
    echo run=ras >/dev/kmsg
    victim "$victim" secs="${secs:-60}"
    echo "the exit code is $?"
    # The kernel may still be busy with the page.
    sleep 1
    dmesg | sed '1,/\] run=ras$/d; s/^\[[^]]*\] /kernel: /'
    echo "kernel: $(grep HardwareCorrupted /proc/meminfo)"
    echo RAS-DONE
}

run_panic() {
    echo 1 >/proc/sys/kernel/sysrq
    echo c >/proc/sysrq-trigger
}

finish() {
    case $1 in
        reboot) reboot -f ;;
        panic) run_panic ;;
        shell) run_shell ;;
        serve) run_serve ;;
    esac
    poweroff -f
}

for name in $modules; do
    modprobe "$name" || echo "MODULE-FAILED $name"
done
[ -z "$client" ] || load_client
case $run in
    serve | shell | poweroff | reboot | panic) then=$run ;;
    demo) run_demo ;;
    hotplug) run_hotplug ;;
    load) run_load ;;
    ras) run_ras ;;
    *) echo "run=$run: not known" ;;
esac
finish "$then"
