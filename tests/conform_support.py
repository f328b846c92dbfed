# SPDX-License-Identifier: Apache-2.0
"""For tests of the conformance suite's host side: guests that speak its protocol, and do other things besides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .asm import assemble

__all__ = ["CATALOGUE", "answer", "asm", "fake_guest", "say", "stream", "verdict"]

_ROUTINES = """
puts:
    mov x20, #0x09000000
1:  ldrb w21, [x0], #1
    cbz w21, 2f
    str w21, [x20]
    b 1b
2:  ret

echo_line:                      // what the host types, up to the end of the line
    mov x20, #0x09000000
1:  ldr w21, [x20, #0x18]
    tbnz w21, #4, 1b
    ldr w21, [x20]
    str w21, [x20]
    cmp w21, #10
    b.ne 1b
    ret

find:                           // x0: text of x1 bytes -> x0: whether it is in the device tree (x27)
    ldr w2, [x27, #4]
    rev w2, w2
    mov x3, x27
1:  subs x2, x2, #1
    b.eq 4f
    mov x4, #0
2:  ldrb w5, [x3, x4]
    ldrb w6, [x0, x4]
    cmp w5, w6
    b.ne 3f
    add x4, x4, #1
    cmp x4, x1
    b.ne 2b
    mov x0, #1
    ret
3:  add x3, x3, #1
    b 1b
4:  mov x0, #0
    ret
"""

CATALOGUE = ("a.one", "a.two", "b.three")


def asm(code: str) -> str:
    """A step of a test: instructions."""
    return code + "\n"


def _text(text: str) -> str:
    return f".byte {','.join(str(byte) for byte in [*text.encode(), 0])}\n.balign 4\n"


def say(text: str) -> str:
    """A step of a test: print."""
    return f"    adr x0, 9f\n    bl puts\n    b 8f\n9:  {_text(text)}8:\n"


def answer() -> str:
    """A step of a test: print what the host answers, as a note."""
    return say("# note: ") + "    bl echo_line\n"


def verdict(test: str, message: str = "") -> str:
    """A step of a test: its verdict, a failure with a message."""
    if not message:
        return say(f"ok 1 - {test}\n")
    return say(f'not ok 1 - {test}\n  ---\n  message: "{message}"\n  at: "x.c:7"\n  ...\n')


def fake_guest(bodies: Sequence[tuple[str, str]], *, obeys: bool = True, begins: str = "", ends: str = "") -> Path:
    """An ELF file with these tests: (id, steps); one without steps passes.

    It begins at the test that from= names, unless it does not obey. `begins` stands
    before everything it prints, `ends` instead of its end.
    """
    ids = [test for test, _ in bodies]
    code = f"    mov x27, x0\n{begins}"
    for i, test in enumerate(ids):
        if obeys and i:
            wanted = f"from={test}"
            code += f"    adr x0, 9f\n    mov x1, #{len(wanted) + 1}\n    bl find\n    cbnz x0, start_{i}\n    b 8f\n"
            code += f"9:  {_text(wanted)}8:\n"
    for i in range(len(ids)):
        head = f"TAP version 14\n# platform: 1 PEs, conduit hvc, SDEI 1.1, vendor 0x4b564d\n1..{len(ids) - i}\n"
        head += "".join(f"# test {test} | rule {test} | title of {test}\n" for test in ids[i:])
        code += f"start_{i}:\n{say(head)}    b test_{i}\n"
    for i, (test, steps) in enumerate(bodies):
        code += f"test_{i}:\n{say(f'# run {test}' + chr(10))}{steps or verdict(test)}"
    code += ends or say("# done\n") + "    off\n    b .\n"
    return assemble(code + _ROUTINES)


def stream(verdicts: Sequence[tuple[str, str]], done: bool = True) -> str:
    """What a guest prints: (id, verdict line and what follows it)."""
    lines = ["TAP version 14", "# sdeivirt conformance suite 1"]
    lines += ["# platform: 4 PEs, conduit hvc, SDEI 1.1, vendor 0x4b564d", f"1..{len(verdicts)}"]
    lines += [f"# test {test} | DEN0054C 5.{i} | the title of {test}" for i, (test, _) in enumerate(verdicts)]
    for i, (test, kind) in enumerate(verdicts, 1):
        lines.append(f"# run {test}")
        if kind == "pass":
            lines.append(f"ok {i} - {test}")
        elif kind == "skip":
            lines.append(f"ok {i} - {test} # SKIP there is no {test}")
        elif kind == "fail":
            lines += [f"not ok {i} - {test}", "  ---", f'  message: "{test} is wrong"', '  at: "x.c:1"', "  ..."]
    return "\n".join([*lines, *(["# done"] if done else [])]) + "\n"
