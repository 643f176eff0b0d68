"""Table: the mutants and what finds them, between two markers in docs/guarantees.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .mutant import ROOT
from .trial import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .mutant import Mutant

__all__ = ("UNTRIED", "known", "put")

GUARANTEES = ROOT / "docs" / "guarantees.md"
BEGIN, END = "<!-- mutants -->", "<!-- /mutants -->"

UNTRIED = "not tried"


def known() -> dict[str, str]:
    """What is written of each mutant: its name, and what finds it."""
    inside = GUARANTEES.read_text().partition(BEGIN)[2].partition(END)[0]
    return dict(re.findall(r"^\| (\w[\w-]+) \| `.*\| ([^|]+) \|$", inside, re.MULTILINE))


def put(mutants: Sequence[Mutant], found: Mapping[str, str]) -> None:
    """Write the table of these mutants."""
    before, begin, rest = GUARANTEES.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    GUARANTEES.write_text(f"{before}{begin}\n{_table(mutants, found)}\n{end}{after}")


def _table(mutants: Sequence[Mutant], found: Mapping[str, str]) -> str:
    by = [found.get(mutant.name, UNTRIED) for mutant in mutants]
    simulated = sum(each.startswith("simulation") for each in by)
    missed, untried = by.count(str(Finding())), by.count(UNTRIED)
    tested = len(by) - simulated - missed - untried
    rows = [
        f"| {mutant.name} | `{mutant.file}` | {mutant.breaks} | {mutant.promise} | {each} |"
        for mutant, each in zip(mutants, by, strict=True)
    ]
    return "\n".join(
        [
            f"{len(mutants)} mutants: {simulated} found by a simulation, {tested} by a test, "
            f"{missed or 'none'} by nothing" + f"; {untried} not tried yet" * bool(untried) + ".",
            "",
            "| mutant | file | what does not hold with it | promise | found by |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )
