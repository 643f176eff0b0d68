"""Aimed schedules: small worlds, lived once for each of their steps, with one or two things happening exactly there."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .plan import HOST, Fault, Plan, Visit
from .world import Result, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ("FAULTS", "SCENARIOS", "Aim", "aims", "live")

Aim = tuple[str, int, tuple[str, ...]]
"""A scenario, one of its steps, and what happens there."""

FAULTS: dict[str, Fault] = {
    "cancel a": Fault(0.0, "cancel", ("a",)),
    "cancel b": Fault(0.0, "cancel", ("b",)),
    "cancel c": Fault(0.0, "cancel", ("c",)),
    "a leaves": Fault(0.0, "leave", ("a",)),
    "b leaves": Fault(0.0, "leave", ("b",)),
    "c leaves": Fault(0.0, "leave", ("c",)),
    "one dies": Fault(0.0, "die", (0,)),
    "all die": Fault(0.0, "die"),
    "drain": Fault(0.0, "drain"),
    "expire": Fault(0.0, "expire"),
    "silence": Fault(0.0, "silent", (0.5, True)),
    "refusal": Fault(0.0, "refuse", (0.3,)),
}
"""What can happen at a step."""

CALM: dict[str, Any] = {
    "maxsize": 2,
    "minsize": 1,
    "acquire_timeout": 0.4,
    "connect_timeout": 0.3,
    "statement_timeout": 0.5,
    "drain_grace": 0.1,
    "drain_timeout": 0.4,
    "breaker_reset": 0.1,
    "keepalive": 1.0,
}


def _plan(name: str, *visits: tuple[Any, ...], hooks: tuple[str, ...] = (), **settings: Any) -> Plan:
    """Each of ``visits``: tag, when, mark, what its handler does."""
    events = tuple(Visit(tag, at, "GET", mark, ops) for tag, at, mark, ops in visits)
    return Plan(
        name, CALM | settings, ((HOST, False),), events, hooks, handler_cancellation=True, length=1.0, calm=15.0
    )


HOLD = (("fetch",), ("sleep", 0.03))
WRITE = (("tx", (("write",), ("sleep", 0.01), ("write",)), "commit"),)

SCENARIOS: dict[str, Plan] = {
    plan.seed: plan
    for plan in (
        _plan("hand-over", ("a", 0.1, "", HOLD), ("b", 0.1, "", HOLD), ("c", 0.11, "", HOLD)),
        _plan("one", ("a", 0.1, "eager", HOLD), ("b", 0.1, "eager", HOLD), ("c", 0.1, "eager", HOLD), maxsize=1),
        _plan("lazy", ("a", 0.1, "lazy", HOLD), ("b", 0.1, "lazy", HOLD), ("c", 0.1, "lazy", HOLD), maxsize=1),
        _plan(
            "transactions",
            ("a", 0.1, "transactional", (("write",), ("sleep", 0.01))),
            ("b", 0.1, "", WRITE),
            ("c", 0.11, "", (("tx", (("write",), ("tx", (("write",),), "raise"), ("write",)), "commit"),)),
            maxsize=1,
        ),
        _plan(
            "repair",
            ("a", 0.1, "", (("begin",),)),
            ("b", 0.1, "", (("slow", 0.2, 0.05),)),
            ("c", 0.11, "", (("stream", 5, 2, "break"), ("fetch",))),
            reset="full",
        ),
        _plan(
            "hooks",
            ("a", 0.1, "", HOLD),
            ("b", 0.1, "", (("error",),)),
            ("c", 0.11, "transactional", (("write",),)),
            hooks=("on_connect", "on_acquire", "on_release"),
            maxsize=1,
        ),
        _plan(
            "checks",
            ("a", 0.1, "", (("trouble",), ("fetch",))),
            ("b", 0.5, "", (("nest", (("fetch",),)),)),
            ("c", 0.5, "", (("check",),)),
            check_after_idle=0.0,
            minsize=2,
        ),
        _plan(
            "sessions",
            ("a", 0.1, "", (("set",), ("fetch",))),
            ("b", 0.1, "", (("tx", (("set",), ("fetch",)), "commit"),)),
            ("c", 0.11, "", (("fetch",), ("sleep", 0.02), ("release",), ("fetch",))),
            maxsize=1,
            reset="auto",
        ),
        _plan(
            "left behind",
            ("a", 0.1, "", (("spawn", (("slow", 0.05, None), ("fetch",))), ("sleep", 0.01))),
            ("b", 0.1, "", (("swallow", (("slow", 0.05, None),)), ("late", (("sleep", 0.02),)))),
            ("c", 0.12, "", (("both", (("slow", 0.02, None),), (("fetch",),)), ("write",))),
            maxsize=1,
            cancel_abandoned=True,
        ),
        _plan(
            "limits",
            ("a", 0.1, "", (("slow", 2.0, None),)),
            ("b", 0.1, "", (("fetch",), ("sleep", 0.6), ("fetch",))),
            ("c", 0.12, "", (("slow", 0.3, 0.1), ("write",))),
            max_lease=0.4,
            leak_threshold=0.1,
            max_lifetime=0.5,
        ),
    )
}
"""Two connections at most, three requests."""


def live(aim: Aim, trace: Callable[[str], None] | None = None) -> Result:
    """A scenario with the faults of an aim."""
    name, step, faults = aim
    return World(SCENARIOS[name], {step: [FAULTS[fault] for fault in faults]}, trace).run()


def steps_of(name: str) -> int:
    """How many steps a scenario has until its requests are done."""
    return World(replace(SCENARIOS[name])).run().busy


def aims(names: Iterable[str] = tuple(SCENARIOS), *, pairs: bool = False) -> Iterator[Aim]:
    """One fault at each step of these scenarios; or two, in both orders."""
    for name in names:
        for step in range(1, steps_of(name) + 1):
            for faults in itertools.permutations(FAULTS, 2) if pairs else ((fault,) for fault in FAULTS):
                yield name, step, faults
