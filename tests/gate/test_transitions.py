"""The states of a connection: the table, the diagram, and gates that do what is not in the table."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from aiohttp_poolscope.gate import Slot, SlotState
from tests.kit.documents import ROOT
from tests.kit.traced import STEPS, Traced

DIAGRAM = ROOT / "docs" / "images" / "gate-states.svg"


def test_the_diagram_shows_the_table() -> None:
    """Each transition has an arrow, and no arrow is no transition."""
    arrows = [
        (call, None if before == "opening" else SlotState(before), SlotState(after))
        for line in ET.parse(DIAGRAM).iter("{http://www.w3.org/2000/svg}path")
        for call in line.get("data-call", "").split()
        for before in line.get("data-before", "").split()
        for after in line.get("data-after", "").split()
    ]
    assert sorted(arrows, key=str) == sorted(STEPS, key=str)


def test_every_arrow_of_the_diagram_is_compared() -> None:
    """None is drawn that says nothing of what it stands for."""
    lines = [path for path in ET.parse(DIAGRAM).iter() if path.get("marker-end")]
    assert len(lines) > 5
    assert all(line.get(name) for line in lines for name in ("data-call", "data-before", "data-after"))


def test_what_is_not_in_the_table_is_noticed() -> None:
    """A connection that is lent while it is being repaired, by a mistake in the gate, stops whatever was tried."""
    gate = Traced(maxsize=1)
    gate.reserve().fill(Slot(1), 0.0)
    slot = gate.try_acquire(0.0)
    assert slot is not None
    slot.state = SlotState.CHECKING
    with pytest.raises(AssertionError, match="no transition"):
        gate.repair(slot, 0.0)


def test_one_that_is_gone_is_noticed() -> None:
    """No connection of the gate is in a state that nothing leads out of."""
    gate = Traced(maxsize=1)
    gate.reserve().fill(Slot(1), 0.0)
    (slot,) = gate.slots
    slot.state = SlotState.GONE
    assert "no slot is gone" in gate.violations()
