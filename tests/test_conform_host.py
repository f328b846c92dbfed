# SPDX-License-Identifier: Apache-2.0
"""The host side of the conformance suite, against streams and guests that are not as they should be."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.conformance import Progress, Report, SuiteRun, Verdict, run_suite
from sdeivirt.conformance.events import SUITE_EVENTS
from sdeivirt.conformance.host import HostLink
from sdeivirt.conformance.selection import check_ids, selected, words_for
from sdeivirt.conformance.tap import NO_VERDICT, Kind, TapParser
from sdeivirt.errors import EnvironmentUnavailableError, UsageError
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.sdei.events import DYNAMIC_PRIVATE, check_events
from sdeivirt.smccc.ids import Conduit

from .conform_support import CATALOGUE, answer, asm, fake_guest, say, stream, verdict
from .control_support import FakeMachine
from .machine_support import KINDS

VERDICTS = [
    ("state.register", "pass"),
    ("state.register.twice", "fail"),
    ("state.enable", "skip"),
    ("state", "pass"),
    ("mask.twice", "fail"),
    ("mask", "none"),
]
TRUTH = {"pass": Verdict.PASS, "fail": Verdict.FAIL, "skip": Verdict.SKIP, "none": Verdict.FAIL}
STREAM = stream(VERDICTS).encode()


def parse(*portions: bytes) -> TapParser:
    parser = TapParser()
    for portion in portions:
        parser.feed(portion)
    parser.finish()
    return parser


def verdicts(parser: TapParser) -> dict[str, tuple[Verdict | None, str, str]]:
    assert parser.stream is not None
    return {test: (r.verdict, r.message, r.at) for test, r in parser.stream.records.items()}


# -- the stream


def test_a_stream_is_understood() -> None:
    parser = parse(STREAM)
    assert len(parser.streams) == 1
    found = parser.streams[0]
    assert found.done
    assert found.plan == len(VERDICTS)
    assert found.ran == [test for test, _ in VERDICTS]
    assert found.platform == {
        "text": "4 PEs, conduit hvc, SDEI 1.1, vendor 0x4b564d",
        "pes": "4",
        "conduit": "hvc",
        "version": "1.1",
        "vendor": "0x4b564d",
    }
    assert {test: record.verdict for test, record in found.records.items()} == {t: TRUTH[v] for t, v in VERDICTS}
    record = found.records["state.register.twice"]
    assert (record.rule, record.title) == ("DEN0054C 5.1", "the title of state.register.twice")
    assert (record.message, record.at) == ("state.register.twice is wrong", "x.c:1")
    assert found.records["state.enable"].message == "there is no state.enable"
    assert found.records["mask"].message == NO_VERDICT


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_portions_make_no_difference(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert verdicts(parse(*(STREAM[a:b] for a, b in pairwise(edges)))) == verdicts(parse(STREAM))


NOISE = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=40).map(
    lambda text: (text + "\r\n").encode("utf-8")
)


@given(st.lists(st.tuples(st.integers(0, STREAM.count(b"\n")), NOISE), max_size=12))
def test_lines_of_others_make_no_difference(noise: list[tuple[int, bytes]]) -> None:
    lines = STREAM.splitlines(keepends=True)
    for place, line in sorted(noise, reverse=True):
        lines.insert(place, line)
    assert verdicts(parse(b"".join(lines))) == verdicts(parse(STREAM))


@given(
    st.lists(
        st.tuples(
            st.integers(0, STREAM.count(b"\n") - 1),
            st.sampled_from(
                [b"NOTICE:  ", b"\x1b[2J\x1b[1;1H", b"\x00\xff\xfe", b"[    0.000000] x: ", b"=> ", "é".encode()]
            ),
        ),
        max_size=5,
    )
)
def test_half_a_line_before_ours_makes_no_difference(noise: list[tuple[int, bytes]]) -> None:
    lines = STREAM.splitlines(keepends=True)
    in_blocks = {i for i, line in enumerate(lines) if line.startswith((b"  ", b"# test"))}
    for place, text in noise:
        if place not in in_blocks:
            lines[place] = text + lines[place]
    found = verdicts(parse(b"".join(lines)))
    assert {test: found[test][0] for test in found} == {test: TRUTH[kind] for test, kind in VERDICTS}


@given(
    st.integers(0, len(STREAM)),
    st.one_of(st.binary(max_size=30), st.sampled_from([b"\n", b"\r\n", b"ERROR: x\n", b"\nok\n", b"n", b"# "])),
)
def test_nothing_in_between_makes_a_pass(place: int, noise: bytes) -> None:
    parser = parse(STREAM[:place] + noise + STREAM[place:])
    for found in parser.streams:
        for test, record in found.records.items():
            if record.verdict is Verdict.PASS:
                assert dict(VERDICTS)[test] == "pass"


@given(st.integers(0, len(STREAM)))
def test_a_log_that_is_cut_short_proves_nothing(size: int) -> None:
    parser = parse(STREAM[:size])
    for found in parser.streams:
        for i, (test, kind) in enumerate(VERDICTS, 1):
            record = found.records.get(test)
            if record is not None and record.verdict is Verdict.PASS:
                assert kind == "pass"
                assert f"\nok {i} - {test}\n".encode() in STREAM[:size]


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(data: bytes) -> None:
    parse(data, b"\n", STREAM, data)


def test_a_line_without_end_costs_no_memory() -> None:
    parser = TapParser()
    for _ in range(100):
        parser.feed(b"x" * 10_000)
        assert len(parser._line) <= 1 << 15
    parser.feed(b"\n" + STREAM)
    assert parser.stream is not None
    assert parser.stream.done


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("# run a.one\nok 1 - a.one\nok 1 - a.one", Verdict.PASS),
        ("# run a.one\nnot ok 1 - a.one\n# run a.one\nok 1 - a.one", Verdict.FAIL),
        ("# run a.one\nnot ok 1 - a.one and more", Verdict.FAIL),
        ("# run a.one\nok 1 - a.one and more", None),
        ("# run a.one\nok 1 - a.one # TODO later", None),
        ("# run a.one\nok 1 - a.one # SKIP", Verdict.SKIP),
        ("# run a.one\nok 1 - a.two", Verdict.FAIL),
        ("ok 1 - a.one", Verdict.FAIL),
        ("# run a.one\nok - a.one", None),
        ("# run a.one\nnot \nok 1 - a.one\n  ---\n  message: \"x\"\n  ...", Verdict.FAIL),
        ("# run a.one\nn ot ok 1 - a.one", None),
        ("# run a.one\nok 1 - a.one\n# SKIP because", Verdict.SKIP),
        ("# run b.three\n# run a.one\nok 1 - a.one\n", Verdict.PASS),
    ],
)  # fmt: skip
def test_verdicts(lines: str, expected: Verdict | None) -> None:
    parser = TapParser()
    head = "TAP version 14\n" + "".join(f"# test {test} | r | t\n" for test in CATALOGUE)
    parser.feed((head + lines + "\n").encode())
    assert parser.stream is not None
    assert parser.stream.records["a.one"].verdict is expected


def test_a_diagnostic_without_quotes_is_read_as_it_stands() -> None:
    text = STREAM.replace(b'"state.register.twice is wrong"', b'"it said "no" \\x"')
    assert verdicts(parse(text))["state.register.twice"][1] == 'it said "no" \\x'


def test_two_boots_in_one_log_are_two_streams() -> None:
    parser = parse(b"U-Boot\n" + STREAM[: STREAM.index(b"not ok 2")] + b"reset\n" + STREAM)
    assert len(parser.streams) == 2
    record = parser.streams[0].records["state.register.twice"]
    assert (record.verdict, record.message) == (Verdict.FAIL, f"{NO_VERDICT}: it began anew")


def test_requests_and_notes() -> None:
    parser = TapParser()
    events = parser.feed(b"TAP version 14\n# run a.b\n# host: inject 0x7 1\n# note: it is so\nBail out! it is over\n")
    assert [(event.kind, event.text) for event in events] == [
        (Kind.START, ""),
        (Kind.RUN, "a.b"),
        (Kind.HOST, "inject 0x7 1"),
        (Kind.NOTE, "it is so"),
        (Kind.BAIL, "it is over"),
    ]
    parser.finish()
    assert parser.stream is not None
    record = parser.stream.records["a.b"]
    assert (record.verdict, record.message, record.notes) == (Verdict.FAIL, "bailed out: it is over", ["it is so"])


# -- ids


def test_ids_and_prefixes() -> None:
    ids = ["state.private.register", "state.shared.register", "mask.twice"]
    assert words_for(ids) == [
        *("state.", "state.private.", "state.private.register", "state.shared.", "state.shared.register"),
        *("mask.", "mask.twice"),
    ]
    assert check_ids(["state", "mask.twice", "state.private", "state."], ids) == [
        "state.",
        "mask.twice",
        "state.private.",
    ]
    assert selected("state.private.register", ["state.private."])
    assert not selected("stateful.register", ["state."])
    assert selected("anything", [])
    with pytest.raises(UsageError, match=r"no test 'mask\.twise' \(did you mean 'mask.twice'"):
        check_ids(["mask.twise"], ids)
    with pytest.raises(UsageError, match="--list"):
        check_ids(["state.priv"], ids)


# -- the host link


@pytest.fixture
def link() -> HostLink:
    machine = FakeMachine(MachineConfig(vcpus=2, events=SUITE_EVENTS))
    machine.register(1, 0x4000_0100)
    machine.register(0, 0x4000_0104)
    return HostLink(machine)


@pytest.mark.parametrize(
    ("requests", "answers"),
    [
        (["inject 0x40000100 1", "status 0x40000100 1", "cancel 0x40000100 1", "cancel 0x40000100 1"],
         ["ok", "ok 11", "ok 1", "ok 0"]),
        (["inject 1073742084 any", "status 0x40000104 any", "status 0x40000104 1"], ["ok", "ok 11", "ok 11"]),
        (["inject 0x40000100 0", "inject 0x40000104 1", "inject 0x5 0", "inject 0x40000100 9"],
         ["error NotRegisteredError", "error UsageError", "error UnknownEventError", "error UnknownVcpuError"]),
        (["masked 1", "masked 7", "masked any", "power 1", "power 2"],
         ["ok 1", "error UnknownVcpuError", "error UsageError", "ok off", "error UnknownVcpuError"]),
        (["status 0x40000101 0", "status 0x40000101 2", "status 0x99 0"],
         ["ok 0", "error UnknownVcpuError", "error UnknownEventError"]),
        (["interrupt 17 0", "interrupt 130 1", "interrupt 17 2"], ["ok 0", "ok 0", "error UnknownVcpuError"]),
        (["", "inject", "inject 1", "inject 1 2 3", "inject x 0", "inject -1 0", "inject 0x 0", "reboot", "masked"],
         ["error UsageError"] * 9),
    ],
)  # fmt: skip
def test_requests_are_answered(link: HostLink, requests: list[str], answers: list[str]) -> None:
    assert [link.answer(request).decode() for request in requests] == [f"{answer}\n" for answer in answers]


@given(st.text(max_size=60))
def test_any_request_gets_one_line(text: str) -> None:
    machine = FakeMachine(MachineConfig(vcpus=1))
    reply = HostLink(machine).answer(text)
    assert reply.count(b"\n") == 1
    assert reply.startswith((b"ok", b"error "))


def test_the_suite_has_two_events_of_each_kind() -> None:
    check_events(SUITE_EVENTS)
    kinds = [(event.shared, event.priority) for event in SUITE_EVENTS]
    assert len(kinds) == 8
    assert all(kinds.count(kind) == 2 for kind in kinds)
    assert all(event.signalable is not event.shared for event in SUITE_EVENTS)
    assert all(event.number & 1 << 30 and event.number < DYNAMIC_PRIVATE for event in SUITE_EVENTS)


# -- guests that misbehave


def run(guest: Any, kind: str = "unicorn", **more: Any) -> SuiteRun:
    report = run_suite(kind, MachineConfig(vcpus=1), guest=guest, **{"limit": 20, "conduits": [Conduit.HVC], **more})
    assert not report.interrupted
    (result,) = report.runs
    assert [record.id for record in result.records] == list(CATALOGUE)
    return result


def told(result: SuiteRun) -> list[str]:
    return [record.verdict.value if record.verdict else "?" for record in result.records]


def guest_with(steps: str, **more: Any) -> Any:
    """Three tests, of which the second does this."""
    return fake_guest([("a.one", ""), ("a.two", steps), ("b.three", "")], **more)


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_guest(kind: str) -> None:
    seen: list[Progress] = []
    result = run(guest_with(""), kind, progress=seen.append)
    assert told(result) == ["PASS"] * 3
    assert result.ok
    assert result.boots == 1
    assert result.platform["version"] == "1.1"
    assert all(record.seconds is not None and record.seconds >= 0 for record in result.records)
    assert [progress.running for progress in seen] == ["a.one", "", "a.two", "", "b.three", ""]
    assert (seen[-1].tests, seen[-1].passed) == (3, 3)


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("steps", "message", "limit"),
    [
        (asm("    b ."), "it took longer than 2 s", 2),
        (asm("    off"), "the guest powered the machine off", 20),
        (asm("    call SYSTEM_RESET"), "the guest reset the machine", 20),
        (asm("    call CPU_OFF"), "every vCPU turned itself off", 20),
        (say("Bail out! no more\n") + asm("    off"), "bailed out: no more", 20),
        (say("\n    Result: FAILED (unexpected)\n") + asm("    off"), "bailed out: unexpected", 20),
    ],
)  # fmt: skip
def test_a_test_that_ends_the_guest_has_failed_and_the_rest_is_run(
    kind: str, steps: str, message: str, limit: float
) -> None:
    result = run(guest_with(steps), kind, limit=limit)
    assert told(result) == ["PASS", "FAIL", "PASS"]
    assert message in result.records[1].message
    assert result.boots == 2
    assert not result.ok
    assert not result.problems


@pytest.mark.machine
def test_a_crash_comes_with_a_report() -> None:
    result = run(guest_with(asm("    mov x19, #0x77\n    .inst 0\n")))
    record = result.records[1]
    assert told(result) == ["PASS", "FAIL", "PASS"]
    assert record.message.startswith(f"{NO_VERDICT}: vCPU 0 could not go on: ")
    assert "0000000000000077" in record.detail


@pytest.mark.machine
def test_every_test_crashes() -> None:
    crash = asm("    .inst 0\n")
    result = run(fake_guest([(test, crash) for test in CATALOGUE]))
    assert told(result) == ["FAIL"] * 3
    assert result.boots == 3


@pytest.mark.machine
def test_failures_are_read_and_a_bail_out_behind_a_verdict_changes_nothing() -> None:
    bails = verdict("a.two", "wrong") + say("Bail out! PE 1 does not answer\n") + asm("    off")
    result = run(guest_with(bails))
    assert told(result) == ["PASS", "FAIL", "PASS"]
    assert (result.records[1].message, result.records[1].at) == ("wrong", "x.c:7")
    assert result.boots == 2


@pytest.mark.machine
@pytest.mark.parametrize("test", CATALOGUE)
def test_an_end_behind_a_test_that_passed_is_a_problem(test: str) -> None:
    ends = verdict(test) + say("Bail out! cannot go on, cleaning up\n") + asm("    off")
    result = run(fake_guest([(each, ends if each == test else "") for each in CATALOGUE]))
    assert told(result) == ["PASS", "PASS", "PASS"]
    assert result.boots == (1 if test == CATALOGUE[-1] else 2)
    problem = f"after {test} had passed or was skipped, the guest did not go on: the guest bailed out: cannot go on, "
    assert [text.startswith(problem) for text in result.problems] == [True]
    assert not result.ok


@pytest.mark.machine
def test_a_guest_that_goes_back_is_ended() -> None:
    result = run(guest_with(asm("    .inst 0\n"), obeys=False))
    assert told(result) == ["PASS", "FAIL", "SKIP"]
    assert result.boots == 2
    assert "the guest began a.one again" in result.problems
    assert result.records[2].message.startswith("not run: ")
    assert not result.ok


@pytest.mark.machine
def test_a_guest_that_repeats_itself_is_ended() -> None:
    result = run(guest_with(verdict("a.two") + asm("    b test_0")))
    assert told(result) == ["PASS", "PASS", "SKIP"]
    assert result.problems == ["the guest began a.one again"]
    assert result.boots == 1
    assert not result.ok


@pytest.mark.machine
def test_a_guest_that_begins_anew_has_failed_where_it_did() -> None:
    result = run(guest_with(say("TAP version 14\n") + verdict("a.two") + asm("    b .")))
    assert told(result) == ["PASS", "FAIL", "PASS"]
    assert result.records[1].message == f"{NO_VERDICT}: it began anew"
    assert result.boots == 2


@pytest.mark.machine
def test_an_unlucky_start_is_tried_once_more() -> None:
    guests = [guest_with(asm("    .inst 0")), guest_with("", begins=asm("    off")), guest_with("")]

    class Next:
        """The path of another guest each time."""

        def __fspath__(self) -> str:
            return str(guests.pop(0))

    result = run(Next())
    assert told(result) == ["PASS", "FAIL", "PASS"]
    assert result.boots == 3
    assert result.problems == [
        "no test was run after start number 2: the guest powered the machine off (PSCI SYSTEM_OFF)"
    ]
    assert not result.ok
    guests = [guest_with(asm("    .inst 0")), *[guest_with("", begins=asm("    off"))] * 5]
    result = run(Next())
    assert told(result) == ["PASS", "FAIL", "SKIP"]
    assert result.boots == 3


@pytest.mark.machine
def test_a_guest_that_never_stops_talking() -> None:
    result = run(guest_with(asm("7:") + say("# note: still here\n") + asm("    b 7b")), limit=1)
    assert told(result) == ["PASS", "FAIL", "PASS"]
    assert "longer than 1 s" in result.records[1].message
    assert len(result.records[1].notes) <= 100


@pytest.mark.machine
def test_a_guest_that_never_stops_asking() -> None:
    began = time.monotonic()
    result = run(guest_with(asm("7:") + say("# host: masked 0\n") + asm("    b 7b")), limit=1)
    assert told(result) == ["PASS", "FAIL", "PASS"]
    assert time.monotonic() - began < 20


@pytest.mark.machine
@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_asks_the_host(kind: str) -> None:
    requests = ["masked 0", "nonsense", "inject 0 0", "status 0x40000100 0"]
    result = run(guest_with("".join(say(f"# host: {r}\n") + answer() for r in requests) + verdict("a.two")), kind)
    assert told(result) == ["PASS", "PASS", "PASS"]
    assert result.records[1].notes == ["ok 1", "error UsageError", "error NotRegisteredError", "ok 0"]


@pytest.mark.machine
def test_nonsense_between_the_lines() -> None:
    noise = say("\x1b[31mERROR:\r\n\xff\x00ok 2 - a.three\nnot ok\n1..\n# run\n# host\n# test x\nNOTICE:  ")
    result = run(guest_with(noise + verdict("a.two"), begins=say("\r\nU-Boot 2024.01\r\n=> ")))
    assert told(result) == ["PASS", "PASS", "PASS"]


@pytest.mark.machine
@pytest.mark.parametrize(
    ("begins", "problem"),
    [
        (asm("    off"), "no test was run after start number 1: the guest powered the machine off (PSCI SYSTEM_OFF)"),
        (asm("    .inst 0"), "no test was run after start number 1: vCPU 0 could not go on: "),
        (asm("    b ."), "no test was run after start number 1: it took longer than 1 s"),
        (say("    Result: FAILED (no /psci in the device tree)\n") + asm("    off"), "no /psci in the device tree"),
        (say("TAP version 14\n1..0 # SKIP no SDEI here\n# done\n") + asm("    off"), "no test to run: no SDEI here"),
    ],
)
def test_a_guest_that_does_not_begin(begins: str, problem: str) -> None:
    guest = guest_with("", begins=begins)
    report = run_suite("unicorn", MachineConfig(vcpus=1), guest=guest, limit=1, conduits=[Conduit.HVC])
    (result,) = report.runs
    assert result.boots == 1
    assert problem in result.problems[0]
    assert (".inst" in begins or "b ." in begins) is ("vCPU 0 stopped" in result.problems[0])
    assert not report.ok
    assert not result.records
    assert report.timed_out is ("longer" in problem)


@pytest.mark.machine
def test_a_guest_that_does_not_power_off() -> None:
    result = run(guest_with("", ends=say("# done\n") + asm("    b .")), limit=1)
    assert told(result) == ["PASS", "PASS", "PASS"]
    assert result.problems == ["after its last test nothing happened for 1 s"]


@pytest.mark.machine
def test_a_guest_that_leaves_tests_out() -> None:
    result = run(guest_with(verdict("a.two") + say("# done\n") + asm("    off\n    b .")))
    assert told(result) == ["PASS", "PASS", "SKIP"]
    assert result.records[2].message == "not run: the guest left it out"


@pytest.mark.machine
def test_ctrl_c_keeps_what_was_found() -> None:
    def interrupt(progress: Progress) -> None:
        if progress.running == "b.three":
            raise KeyboardInterrupt

    report = run_suite("unicorn", MachineConfig(vcpus=1), guest=guest_with(""), progress=interrupt, limit=20)
    assert report.interrupted
    assert not report.ok
    (result,) = report.runs
    assert told(result) == ["PASS", "PASS", "SKIP"]
    assert result.records[2].message == "not run: interrupted"


@pytest.mark.machine
def test_an_engine_that_goes_away_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_once(kind: str, config: MachineConfig) -> Any:
        if "from=" in config.bootargs:
            raise EnvironmentUnavailableError("the engine is gone")
        return open_machine(kind, config)

    monkeypatch.setattr("sdeivirt.conformance.runner.open_machine", open_once)
    report = run_suite("unicorn", MachineConfig(vcpus=1), guest=guest_with(asm("    .inst 0")), limit=20)
    assert isinstance(report.error, EnvironmentUnavailableError)
    assert [told(result) for result in report.runs] == [["PASS", "FAIL", "SKIP"]]
    assert report.runs[0].records[2].message == "not run: the engine is gone"


@pytest.mark.machine
def test_both_conduits_one_after_the_other() -> None:
    report = run_suite("unicorn", MachineConfig(vcpus=1), guest=guest_with(""), limit=20)
    assert [result.conduit for result in report.runs] == ["hvc", "smc"]
    assert report.ok
    assert report.engine.startswith("Unicorn 2")
    assert isinstance(report, Report)


def test_too_many_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="too many ids"):
        run_suite("unicorn", MachineConfig(), guest=guest_with(""), only=[f"state.number.{i}" for i in range(200)])
