# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt completion`."""

from __future__ import annotations

from typing import Literal

__all__ = ["completion"]


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

    print(app.generate_completion(prog_name="sdeivirt", shell=shell))
