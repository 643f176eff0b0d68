"""Traced: a gate that is held to its table of transitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.gate import Gate, Slot, SlotState, Waiter
from aiohttp_poolscope.gate.slots import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable

Step = tuple[str, SlotState | None, SlotState]

STEPS: frozenset[Step] = frozenset(
    (call, before, after) for call, (befores, afters) in TRANSITIONS.items() for before in befores for after in afters
)
"""The table, one row for each arrow."""


class Traced(Gate[int]):
    """No call may do to a connection what the table does not say. ``seen``: what has been done."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: set[Step] = set()
        self._within = False


def traced(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def held(self: Traced, *arguments: Any) -> Any:
        if self._within:  # one call that makes another: what both do together is what is looked at
            return call(self, *arguments)
        states: dict[Slot[int], SlotState] = {slot: slot.state for slot in self.slots}
        meant = next(iter(arguments), None)
        meant = meant.slot if isinstance(meant, Waiter) else meant
        self._within = True
        try:
            result = call(self, *arguments)
        finally:
            self._within = False
        for slot in {*states, *self.slots}:
            before = states.get(slot)
            if slot.state is not before or (slot is meant and name in TRANSITIONS):
                step = (name, before, slot.state)
                assert step in STEPS, f"no transition: {step}"
                self.seen.add(step)
        return result

    return held


for _name, _call in list(vars(Gate).items()):
    if callable(_call) and not _name.startswith("_"):
        setattr(Traced, _name, traced(_name, _call))
Traced._admit = traced("fill", Gate._admit)  # type: ignore[method-assign]
