# SPDX-License-Identifier: Apache-2.0
"""What unmodified Debian kernels make of hardware errors that SDEI announces.

Judged by what they do: of what they print they drop what comes too fast.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator

import pytest

from sdeivirt.errors import NotRegisteredError
from sdeivirt.ras.cper import Severity
from sdeivirt.sdei.model import Handler, Pe
from sdeivirt.sdei.observer import Observer

from .linux_ras_support import NEEDS_UEFI, OUTSIDE, PRIVATE, SOURCES, RasLinux, memory_error
from .linux_support import KERNELS, linux_marks

pytestmark = linux_marks

FIRMWARE = ("acpi", "uefi")
SHORT = {("bookworm", 1, "acpi"), ("newest", 4, "acpi")}
BOOTS = [
    pytest.param(
        (kernel, vcpus, firmware),
        marks=[
            pytest.mark.linux if (kernel, vcpus, firmware) in SHORT else pytest.mark.linux_full,
            *([NEEDS_UEFI] if firmware == "uefi" else []),
        ],
        id=f"{kernel}-{vcpus}-{firmware}",
    )
    for kernel in KERNELS
    for vcpus in (1, 4)
    for firmware in FIRMWARE
]


@pytest.fixture(scope="module", params=BOOTS)
def linux(request: pytest.FixtureRequest) -> Iterator[RasLinux]:
    kernel, vcpus, firmware = request.param
    with RasLinux(kernel, vcpus, firmware) as linux:
        linux.booted()
        yield linux


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


# ------------------------------------------------------------------------------------------------ errors in memory


def test_sdei_is_found_by_its_table_and_sources_register_by_themselves(linux: RasLinux) -> None:
    assert re.search(r"ACPI: SDEI 0x[0-9A-F]+ 000024 \(v00 ", linux.text)
    assert "sdei: SDEIv1.1 (0x4b564d) detected in firmware." in linux.text
    events = {event.number: event for event in linux.machine.status().events}
    vcpus = linux.machine.config.vcpus
    for source in SOURCES:
        event = events[source.event]
        assert [(each.registered, each.enabled) for each in event.handlers] == [(True, True)] * (
            vcpus if event.type == "private" else 1
        )


def test_a_corrected_error_is_printed_and_nothing_else(linux: RasLinux, chance: random.Random) -> None:
    before = linux.corrupted()
    pages = linux.free_pages(chance)
    for _ in range(20):
        address = next(pages)
        linux.log_begins()
        linux.report(memory_error(Severity.CORRECTED, address))
        linux.sh("for i in $(seq 20); do dmesg | grep -q 'Hardware Error' && break; sleep 0.02; done; true")
        log = linux.sh("dmesg")
        if "Hardware Error" in log:  # two reports in five seconds are printed
            break
    for line in (
        "Hardware error from APEI Generic Hardware Error Source: 0",
        "It has been corrected by h/w and requires no further action",
        "event severity: corrected",
        "section_type: memory error",
        f"physical_address: {address:#018x}",
    ):
        assert line in log, log
    assert linux.corrupted() == before
    assert not linux.poisoned(address)


def test_a_page_with_too_many_corrected_errors_is_given_up(linux: RasLinux, chance: random.Random) -> None:
    before = linux.corrupted()
    address = next(linux.free_pages(chance))
    linux.report(memory_error(Severity.CORRECTED, address, threshold=True))
    linux.gives_up(before + 4)
    assert linux.poisoned(address)


def test_a_process_does_not_notice_that_its_page_is_given_up(linux: RasLinux) -> None:
    before = linux.corrupted()
    victim = linux.victim()
    linux.report(memory_error(Severity.CORRECTED, victim.address, threshold=True))
    linux.gives_up(before + 4)
    assert linux.poisoned(victim.address)
    (moved,) = linux.living(victim.name)
    assert (moved.pid, moved.virtual) == (victim.pid, victim.virtual)
    assert moved.address != victim.address
    linux.sh(f"kill -9 {victim.pid}")


def test_a_recoverable_error_in_a_free_page(linux: RasLinux, chance: random.Random) -> None:
    before = linux.corrupted()
    address = next(linux.free_pages(chance))
    linux.log_begins()
    linux.report(memory_error(Severity.RECOVERABLE, address))
    linux.gives_up(before + 4)
    assert linux.poisoned(address)
    linux.says(f"Memory failure: {address >> 12:#x}: recovery action for free buddy page: Recovered")


@pytest.mark.parametrize(("kind", "code"), [("late", 4), ("early", 5)])
def test_a_recoverable_error_in_the_page_of_a_process(linux: RasLinux, kind: str, code: int) -> None:
    """BUS_MCEERR_AR at its next access, or BUS_MCEERR_AO at once if it has asked for that: PR_MCE_KILL_EARLY."""
    before = linux.corrupted()
    other, victim = linux.victim(), linux.victim(kind)
    linux.report(memory_error(Severity.RECOVERABLE, victim.address))
    assert f"SIGBUS, code {code}, at {victim.virtual:#x}\n" in linux.verdict(victim)
    linux.gives_up(before + 4)
    assert linux.poisoned(victim.address)
    assert linux.living(other.name) == [other]
    linux.sh(f"kill -9 {other.pid}")


def test_a_recoverable_error_in_the_code_of_the_kernel_is_ignored(linux: RasLinux) -> None:
    address = linux.kernel_text()
    linux.log_begins()
    linux.report(memory_error(Severity.RECOVERABLE, address))
    linux.says(f"Memory failure: {address >> 12:#x}: recovery action for .*: Ignored")
    # The page is marked, and everything goes on.
    assert linux.poisoned(address)
    assert linux.sh("echo lives").strip() == "lives"


def test_a_recoverable_error_where_there_is_no_memory(linux: RasLinux) -> None:
    before = linux.corrupted()
    linux.log_begins()
    linux.report(memory_error(Severity.RECOVERABLE, OUTSIDE))
    # The older kernel looks at the address first; the newer one has it dealt with.
    linux.says(f"GHES: Invalid address in .*: {OUTSIDE:#x}|{OUTSIDE >> 12:#x}: .* non struct page pfn: Ignored")
    assert linux.corrupted() == before


# ---------------------------------------------------------------------------------------------------------- sources


def test_every_kind_of_source(linux: RasLinux, chance: random.Random) -> None:
    """Shared and private on each CPU, normal and critical, with and without an acknowledgement of its own."""
    before = linux.corrupted()
    pages = linux.free_pages(chance)
    count = 0
    for source in SOURCES:
        for vcpu in range(linux.machine.config.vcpus) if source.number in PRIVATE else (None,):
            outcome = linux.report(memory_error(Severity.RECOVERABLE, next(pages)), source.number, vcpu)
            assert (outcome.source, outcome.event) == (source.number, source.event)
            assert vcpu in (None, outcome.vcpu)
            count += 1
    linux.gives_up(before + 4 * count)


class Order(Observer):
    """Which handlers were entered and left, in order, by PE."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, str, int]] = []

    def delivered(self, pe: Pe, handler: Handler) -> None:
        self.steps.append((pe.index, "in", handler.event.number))

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        self.steps.append((pe.index, "out", handler.event.number))


def test_a_critical_source_preempts_a_normal_one(linux: RasLinux, chance: random.Random) -> None:
    order = Order()
    linux.machine.firmware.sdei.observe(order)
    pages = linux.free_pages(chance)
    vcpu = linux.machine.config.vcpus - 1
    sources = PRIVATE  # so that no other PE takes the second one
    normal, critical = (SOURCES[source].event for source in sources)
    preempted = [(vcpu, "in", normal), (vcpu, "in", critical), (vcpu, "out", critical), (vcpu, "out", normal)]
    for _ in range(2000):
        order.steps.clear()
        reports = []
        for source in sources:
            reports.append(linux.machine.errors.submit(memory_error(Severity.CORRECTED, next(pages)), source, vcpu))
            # The first handler runs for less than a millisecond, some time from now: every delay is tried.
            time.sleep(chance.uniform(0, 0.001))
        assert [report.result(30).outcome for report in reports] == ["acknowledged"] * 2
        # The other way round it never is.
        at = order.steps.index((vcpu, "in", critical))
        assert order.steps[at + 1] == (vcpu, "out", critical)
        if order.steps == preempted:
            break
    assert order.steps == preempted


def test_cpus_go_and_come(linux: RasLinux, chance: random.Random) -> None:
    last = linux.machine.config.vcpus - 1
    if last == 0:
        pytest.skip("there is one CPU")
    before = linux.corrupted()
    pages = linux.free_pages(chance)

    def reports(vcpus: range) -> int:
        for source in SOURCES:
            for vcpu in vcpus if source.number in PRIVATE else (None,):
                linux.report(memory_error(Severity.RECOVERABLE, next(pages)), source.number, vcpu)
        return len(SOURCES) - len(PRIVATE) + len(PRIVATE) * len(vcpus)

    online = "/sys/devices/system/cpu/cpu{}/online"
    count = reports(range(last + 1))
    linux.sh("; ".join(f"echo 0 >{online.format(cpu)}" for cpu in range(1, last + 1)))
    count += reports(range(1))
    with pytest.raises(NotRegisteredError):
        linux.machine.errors.submit(memory_error(Severity.RECOVERABLE, next(pages)), PRIVATE[0], last)
    linux.sh("; ".join(f"echo 1 >{online.format(cpu)}" for cpu in range(1, last + 1)))
    count += reports(range(last + 1))
    linux.gives_up(before + 4 * count)
