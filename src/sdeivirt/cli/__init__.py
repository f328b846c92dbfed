# SPDX-License-Identifier: Apache-2.0
"""The command line: one thin module a verb, loaded when the verb is used.

Results go to standard output, everything else to standard error. Exit codes:
0 ok, 1 a check failed, 2 usage, 3 machine or environment unavailable, 124
time-out, 128 + n after signal n.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from .. import __version__
from ..errors import EnvironmentUnavailableError, SdeivirtError

__all__ = ["app", "main"]

BROKEN_PIPE = 128 + 13  # as if SIGPIPE had ended us
INTERRUPTED = 128 + 2
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

app = App(
    name="sdeivirt",
    version=__version__,
    help="SDEI (Arm DEN0054C) for real AArch64 guests: the hypervisor's side.",
    default_parameter=Parameter(negative=()),
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
)
# The module of each verb, and the App or function in it; imported when the verb is used.
_VERBS = {
    "selftest": "selftest:selftest",
    "conform": "conform:conform",
    "run": "run:run",
    "inject": "inject:inject",
    "inject-error": "inject_error:inject_error",
    "cper": "cper:app",
    "status": "status:status",
    "registers": "registers:registers",
    "migrate": "migrate:migrate",
    "save": "migrate:save",
    "restore": "receive:restore",
    "serve": "serve:serve",
    "doctor": "doctor:doctor",
    "tables": "tables:app",
    "bench": "bench:app",
    "fuzz": "fuzz:fuzz",
    "completion": "completion:completion",
}
# Arguments that are no options are told as [ARGS] where they may be left out.
_MORE = {"migrate": {"usage": "Usage: sdeivirt migrate [OPTIONS] [VM] [URI]"}}
for _verb, _target in _VERBS.items():
    app.command(f"{__name__}.{_target}", name=_verb, **_MORE.get(_verb, {}))


def _complain(message: str, hint: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _open_streams() -> None:
    """Stand in for standard streams that are closed, before some other file gets their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _discard_output() -> None:
    """Nobody reads our output any more; the interpreter must not try to flush it at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


def _see_help(error: CycloptsError) -> str:
    verb = " ".join(("sdeivirt", *(error.command_chain or ())))
    return f"see `{verb} --help`"


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default); the exit code."""
    _open_streams()
    words = list(sys.argv[1:] if tokens is None else tokens)
    if not words or words[0] in app.help_flags:
        for verb in _VERBS:
            app[verb]  # loads it, so that the help can say what it does
    try:
        result = app(words)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except UnusedCliTokensError as error:
        _complain(f"unexpected argument {(error.unused_tokens or ['?'])[0]!r}", _see_help(error))
        return 2
    except CycloptsError as error:
        _complain(str(error).strip().removesuffix("."), _see_help(error))
        return 2
    except SdeivirtError as error:
        _complain(error.message, error.hint)
        return error.exit_code
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        _discard_output()
        _complain(f"cannot write the output: {error.strerror}", "make room, or send it elsewhere")
        return EnvironmentUnavailableError.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
