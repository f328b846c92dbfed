# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt completion`, and what completes some arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .options import complete_files

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.completion import CompletionContext

__all__ = ["complete_guests", "complete_listeners", "completion"]


def complete_listeners(context: CompletionContext) -> list[str]:
    """Where one can listen: tcp:, and unix: with the paths there are."""
    scheme, colon, path = context.incomplete.partition(":")
    if not colon:
        return ["tcp:", "unix:"]
    return [f"{scheme}:{each}" for each in complete_files(path)] if scheme == "unix" else []


def complete_guests(context: CompletionContext) -> list[str]:
    """The guests that come with us, and files."""
    from ..guests import GUESTS

    return [*GUESTS, *complete_files(context.incomplete)]


# bash breaks words at colons, and what it has found is only put in the place of the last piece.
_JOINED = r"""
_sdeivirt_joined() {
  local -a given=("${COMP_WORDS[@]:0:COMP_CWORD+1}")
  local -a COMP_WORDS=()
  local word joins=0
  for word in "${given[@]}"; do
    if [[ ${#COMP_WORDS[@]} -gt 1 && ( "$word" == ":" || $joins -eq 1 ) ]]; then
      COMP_WORDS[-1]+="$word"
    else
      COMP_WORDS+=("$word")
    fi
    [[ "$word" == ":" ]] && joins=1 || joins=0
  done
  local COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  local last="${COMP_WORDS[COMP_CWORD]}"
  _sdeivirt "$@"
  if [[ "$last" == *:* && "$COMP_WORDBREAKS" == *:* ]]; then
    local begun="${last%"${last##*:}"}"
    COMPREPLY=("${COMPREPLY[@]#"$begun"}")
  fi
  [[ ${#COMPREPLY[@]} -eq 1 && ( "${COMPREPLY[0]}" == */ || "${COMPREPLY[0]}" == *: || "${COMPREPLY[0]}" == *= ) ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -F _sdeivirt_joined sdeivirt"""  # noqa: E501


# It takes any word for a command that is one somewhere: `memory`, which is a benchmark, after `inject-error vm`.
_ANY_COMMAND = '[[ " $all_commands " =~ " $word " ]]'
_THIS_COMMAND = '[[ "$all_paths" == *"|${cmd_path[*]:+${cmd_path[*]} }$word|"* ]]'
_COMMANDS = "  local all_commands="


def _paths(app: App, before: str = "") -> list[str]:
    """All commands, each after those that it belongs to."""
    found = []
    for name in app:
        if not name.startswith("-"):
            found += [f"{before}{name}", *_paths(app[name], f"{before}{name} ")]
    return found


def _with_paths(script: str, paths: list[str]) -> str:
    """The script of bash, which then knows a command by where it stands."""
    named = f"  local all_paths='|{'|'.join(paths)}|'\n"
    return script.replace(_ANY_COMMAND, _THIS_COMMAND).replace(_COMMANDS, named + _COMMANDS, 1)


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a completion script for a shell.

    For example: `source <(sdeivirt completion bash)`, or for every session
    `sdeivirt completion fish > ~/.config/fish/completions/sdeivirt.fish`.

    Parameters
    ----------
    shell
        The shell that the script is for.
    """
    from . import app

    script = app.generate_completion(prog_name="sdeivirt", shell=shell)
    if shell == "bash":
        print(_with_paths(script, _paths(app)), _JOINED, sep="\n")
    else:
        print(script)
