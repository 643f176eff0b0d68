"""Mutant: one mistake that a tired engineer could make, as an edit of one place in the package."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

__all__ = ("PACKAGE", "ROOT", "Mutant", "Rotten")

ROOT = Path(__file__).parents[2]
PACKAGE = "aiohttp_poolscope"


class Rotten(Exception):
    """The place of a mutant is not in the source any more, or there several times."""


@dataclass(frozen=True)
class Mutant:
    """``after`` stands in ``file`` in the place of ``before``, whole lines but for the indentation they have in common.

    ``breaks`` is the promise that does not hold then, ``promise`` its id in docs/guarantees.md, where there is one.
    ``tests`` are those that should find it: they are tried before the rest of the room.
    """

    name: str
    file: str
    before: str
    after: str
    breaks: str
    promise: str = ""
    tests: tuple[str, ...] = ()

    @property
    def room(self) -> str:
        """The folder of tests that mirrors the mutant's."""
        return f"tests/{self.file.partition('/')[0]}"

    def source(self, root: Path = ROOT) -> str:
        """The text of its file, with the mistake in it. Raises Rotten unless its place is found exactly once."""
        lines = (root / PACKAGE / self.file).read_text().splitlines()
        before, after = (textwrap.dedent(text).strip("\n").splitlines() for text in (self.before, self.after))
        places = [start for start in range(len(lines)) if _stands_at(lines, start, before)]
        if len(places) != 1:
            raise Rotten(f"{self.name}: its place is found {len(places)} times in {self.file}:\n{self.before}")
        start = places[0]
        indentation = _indentation(lines[start]) - _indentation(before[0])
        put = [" " * indentation + line if line else line for line in after]
        return "\n".join([*lines[:start], *put, *lines[start + len(before) :], ""])


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _stands_at(lines: list[str], start: int, wanted: list[str]) -> bool:
    there = lines[start : start + len(wanted)]
    more = " " * (_indentation(there[0]) - _indentation(wanted[0]))
    return there == [more + line if line else line for line in wanted]
