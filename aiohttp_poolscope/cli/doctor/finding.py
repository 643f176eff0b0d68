"""A finding of the doctor: how grave, what, why, and the line to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("Finding", "Severity", "as_lines", "grave")

Severity = Literal["ok", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``why`` and ``change`` are empty where all is well."""

    severity: Severity
    name: str
    what: str
    why: str = ""
    change: str = ""


def grave(findings: Iterable[Finding]) -> bool:
    """Whether any of them is above info."""
    return any(finding.severity in ("warning", "error") for finding in findings)


def as_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """To be read: a line for each, and one more for what should change and why."""
    for finding in findings:
        # PostgreSQL's name is longer than all others.
        name = finding.name.replace("idle_in_transaction_session_timeout", "idle_in_transaction")
        yield f"  {finding.severity:<7}  {name:<21} {finding.what}"
        if finding.why:
            yield f"           {'':<21} {finding.why}"
        if finding.change:
            yield f"           {'':<21} -> {finding.change}"
