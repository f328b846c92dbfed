# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt registers`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..control.client import VmClient
from ..control.framing import decode
from ..errors import RegisterError, UsageError
from ..files import read_regular
from .options import Json, Number, VmName, complete_files
from .output import show, table

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

__all__ = ["registers"]

_SOON = 2.0  # seconds, while somebody waits for a completion
_PATIENCE = 60.0  # seconds; there may be a million registers
_MAX_FILE = 256 << 20
_LONG = 128  # bits that a table has room for

Action = Literal["list", "get", "set", "dump", "load"]
_OPERANDS: dict[str, tuple[int, int | None]] = {
    "list": (0, 0),
    "get": (1, None),
    "set": (1, None),
    "dump": (0, 0),
    "load": (1, 1),
}


def _complete_operands(context: CompletionContext) -> list[str]:
    """Registers of the VM that is named, or files."""
    vm, action = context["vm"].raw, context["action"].raw
    if action == "load":
        return complete_files(context.incomplete)
    if action not in ("get", "set") or vm is None:
        return []
    with VmClient(vm, _SOON) as client:
        names = dict.fromkeys(row["name"] for row in client.list_registers())
    return [f"{name}=" for name in names] if action == "set" else list(names)


def registers(
    vm: VmName,
    action: Action = "list",
    /,
    *operands: Annotated[str, Parameter(allow_leading_hyphen=True, completer=_complete_operands)],
    vcpu: Number | None = None,
    pause: bool = False,
    json_: Json = False,
) -> None:
    """Show or set the state of a VM's SDEI service as pseudo-firmware registers.

    list, get ID..., set ID=VALUE..., dump, or load FILE. A register is named
    as in the list, or by its id; ID@VCPU is that of one vCPU; values are
    hexadecimal with 0x, or decimal.
    What set and load are given is taken over as a whole, or refused as a
    whole. They want the VM to be paused.

    Parameters
    ----------
    vm
        The VM's name.
    action
        list: all registers; get: some of them; set: change some; dump: all
        state, as JSON; load: take over the state that dump has written.
    operands
        For get: REGISTER, or REGISTER@VCPU. For set: REGISTER=VALUE, or REGISTER@VCPU=VALUE.
        For load: a file, or - for standard input.
    vcpu
        The vCPU whose registers are meant, by index; get shows all without it.
    pause
        Pause the VM for set or load, and have it go on afterwards.
    """
    least, most = _OPERANDS[action]
    if len(operands) < least or (most is not None and len(operands) > most):
        wanted = {"get": "registers", "set": "REGISTER=VALUE", "load": "one file"}.get(action, "nothing")
        raise UsageError(f"{action} takes {wanted}", "see `sdeivirt registers --help`")
    if action in ("dump", "load") and vcpu is not None:
        raise UsageError(f"{action} is about all vCPUs", "leave --vcpu out")
    # Before the VM is paused: what can be found wrong here is.
    assignments = [_assignment(operand, vcpu) for operand in operands] if action == "set" else []
    state = _read(operands[0]) if action == "load" else {}
    with VmClient(vm, _PATIENCE) as client:
        if action == "list":
            _print(client.list_registers(vcpu), json_)
        elif action == "get":
            found = [row for operand in operands for row in _got(client, operand, vcpu)]
            _print(found, json_, whole=True)
        elif action == "dump":
            print(json.dumps(client.dump_registers(), indent=1))
        else:
            placed = _without_contradiction([_placed(client, each) for each in assignments])
            with _paused(client, pause):
                if action == "set":
                    client.set_registers(placed)
                else:
                    client.load_registers(state)
            if json_:
                print(json.dumps({"set": len(assignments)} if action == "set" else {"loaded": True}))


@contextmanager
def _paused(client: VmClient, pause: bool) -> Iterator[None]:
    """Pause the VM if that is wanted and it runs; it goes on whatever becomes of the rest."""
    running = pause and bool(client.execute("query-status")["running"])
    if running:
        client.pause()
    try:
        yield
    finally:
        if running:
            client.resume()


def _named(operand: str, vcpu: int | None, what: str = "is no register") -> tuple[str, int | None]:
    """REGISTER or REGISTER@VCPU; `vcpu` is that of --vcpu. Raises RegisterError."""
    register, at, where = operand.partition("@")
    if not register or (at and not (where.isascii() and where.isdecimal() and len(where) < 10)):
        raise RegisterError(f"{operand[:60]!r} {what}", "write REGISTER, or REGISTER@VCPU with the vCPU's index")
    if at and vcpu is not None and int(where) != vcpu:
        raise RegisterError(f"{operand[:60]!r} is of vCPU {int(where)}, and --vcpu says {vcpu}", "leave --vcpu out")
    return register, int(where) if at else vcpu


def _got(client: VmClient, operand: str, vcpu: int | None) -> list[dict[str, Any]]:
    """What `get` was asked for. Raises RegisterError."""
    register, where = _named(operand, vcpu)
    rows = client.get_register(register, where)
    if "@" in operand and rows[0]["vcpu"] is None:
        raise RegisterError(f"{rows[0]['name']} is one of the VM, and no vCPU has it", f"write {rows[0]['name']}")
    return rows


def _assignment(operand: str, vcpu: int | None) -> dict[str, Any]:
    """REGISTER=VALUE or REGISTER@VCPU=VALUE as `set-registers` wants it. Raises RegisterError."""
    name, equals, value = operand.partition("=")
    if not equals:
        raise RegisterError(f"{operand[:60]!r} sets no register", "write REGISTER=VALUE, or REGISTER@VCPU=VALUE")
    register, where = _named(name, vcpu, "sets no register")
    return {"register": register, "value": value, "vcpu": where, "named": "@" in name}


def _placed(client: VmClient, assignment: dict[str, Any]) -> dict[str, Any]:
    """With its id, and the vCPU that is meant: --vcpu does not count for a register of the VM; one vCPU needs none."""
    vcpu, named = assignment["vcpu"], assignment.pop("named")
    rows = client.get_register(assignment["register"], vcpu if named else None)
    assignment["id"] = rows[0]["id"]
    if named:
        return assignment
    if rows[0]["vcpu"] is None:
        return {**assignment, "vcpu": None}
    if vcpu is None and len(rows) > 1:
        raise RegisterError(f"each vCPU has a register {rows[0]['name']}", "say which one is meant: --vcpu N")
    return {**assignment, "vcpu": vcpu or 0}


def _without_contradiction(placed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the VM wants them. Raises RegisterError where a register is to have two values."""
    found: dict[tuple[str, int | None], str] = {}
    for each in placed:
        other = found.setdefault((each.pop("id"), each["vcpu"]), each["value"])
        if _number(other) != _number(each["value"]):
            where = "" if each["vcpu"] is None else f" of vCPU {each['vcpu']}"
            raise RegisterError(
                f"{each['register']}{where} cannot be both {other[:40]!r} and {each['value'][:40]!r}", "set it once"
            )
    return placed


def _number(value: str) -> int | str:
    """What is written there, whichever way; what is no number as it is."""
    try:
        return int(value, 16 if value[:2] in ("0x", "0X") else 10)
    except ValueError:
        return value


def _read(file: str) -> dict[str, Any]:
    """A dump from a file, or from standard input. Raises RegisterError."""
    if file == "-":
        content = sys.stdin.buffer.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise RegisterError("standard input has no end", "give it a dump")
    else:
        content = read_regular(Path(file), _MAX_FILE, RegisterError, "give the path of a dump", "no dump is that long")
    try:
        document = decode(content)
    except (ValueError, RecursionError) as error:
        raise RegisterError(f"{file} holds no JSON: {str(error)[:100]}", "give it what `dump` has written") from error
    if not isinstance(document, dict):
        raise RegisterError(f"{file} holds no dump of registers", "give it what `dump` has written")
    return document


def _print(rows: Sequence[dict[str, Any]], as_json: bool, whole: bool = False) -> None:
    """A table, or JSON; with `whole` long values are shown to their end."""
    if as_json:
        print(json.dumps(list(rows), indent=2))
    elif whole:
        for row in rows:
            where = "" if row["vcpu"] is None else f" of vCPU {row['vcpu']}"
            print(f"{row['name']} ({row['id']}){where} = {row['value']}: {row['text']}")
    else:
        made = table("", "register", "vCPU", "id", "bits", "value", "state")
        for row in rows:
            value = row["value"] if row["size"] <= _LONG else "..." if int(row["value"], 16) else "0x0"
            where = "-" if row["vcpu"] is None else str(row["vcpu"])
            made.add_row(row["name"], where, row["id"], str(row["size"]), value, row["text"])
        show(made)
