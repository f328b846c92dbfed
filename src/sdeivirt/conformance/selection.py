# SPDX-License-Identifier: Apache-2.0
"""Which tests are meant: by an id, by a prefix of ids that ends at a dot, by the name of a group."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from ..errors import UsageError

__all__ = ["check_ids", "selected", "words_for"]


def words_for(ids: Iterable[str]) -> list[str]:
    """Every word that selects something: the ids, and what stands before each of their dots."""
    found: dict[str, None] = {}
    for test in ids:
        parts = test.split(".")
        for i in range(1, len(parts)):
            found[".".join(parts[:i]) + "."] = None
        found[test] = None
    return list(found)


def check_ids(wanted: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The words as the guest understands them: ids, and prefixes with their dot.

    Raises UsageError for one that selects nothing, with what may have been meant.
    """
    known = set(words_for(ids))
    words = []
    for word in wanted:
        if word in known:
            words.append(word)
        elif f"{word}." in known:
            words.append(f"{word}.")
        else:
            near = difflib.get_close_matches(word.rstrip("."), [w.rstrip(".") for w in known], n=1, cutoff=0.5)
            raise UsageError(
                f"there is no test {word!r}",
                f"did you mean {near[0]!r}? `sdeivirt conform --list` shows all"
                if near
                else "`sdeivirt conform --list` shows all",
            )
    return list(dict.fromkeys(words))


def selected(test: str, words: Sequence[str]) -> bool:
    """Whether words from :func:`check_ids` select a test; no words select all."""
    return not words or any(test == word or (word.endswith(".") and test.startswith(word)) for word in words)
