"""Kinds of values: what they take, what they refuse, and how they say so."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from aiohttp_poolscope.config.values import LONGEST, Kind, choice, either, flag, function, seconds, share, text, whole
from aiohttp_poolscope.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


async def hook(_: object) -> None: ...


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        (whole(0), "0", 0),
        (whole(0), " 12\n", 12),
        (whole(0), "+3", 3),
        (seconds(), "5", 5.0),
        (seconds(), "0.5", 0.5),
        (seconds(), "1e3", 1000.0),
        (seconds(optional=True), "", None),
        (seconds(optional=True), "none", None),
        (seconds(optional=True), "Off", None),
        (share(), "1", 1.0),
        *[(flag(), word, True) for word in ("true", "True", "on", "1", "yes")],
        *[(flag(), word, False) for word in ("false", "OFF", "0", "no")],
        (choice("a", "b"), "b ", "b"),
        (text(), "", ""),
        (text(optional=True), "", None),
        (text(optional=True), "none", "none"),
        (text(optional=True), " ", " "),
        (either("x", text(optional=True), callable), "off", "off"),
    ],
)
def test_text_becomes_a_value(kind: Kind, written: str, value: object) -> None:
    """What stands in a DSN or a variable becomes a value of the right type."""
    found = kind.read("it", written)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (whole(0), 0),
        (whole(0, 3), 3),
        (seconds(), 0.001),
        (seconds(), LONGEST),
        (seconds(0), 0),
        (seconds(optional=True), None),
        (share(), 1e-9),
        (flag(), False),
        (text(max_bytes=4), "éé"),
        (function("x"), None),
        (function("x"), hook),
        (function("x", synchronous=True), partial(int, base=2)),
        (either("x", choice("a"), callable), "a"),
        (either("x", choice("a"), callable), int),
    ],
)
def test_right_values_are_kept(kind: Kind, value: object) -> None:
    """The ends of a range belong to it."""
    assert kind.check("it", value) == value


def test_durations_are_floats() -> None:
    """A duration given as a whole number is kept as a float."""
    assert type(seconds().check("it", 5)) is float


WRONG: list[tuple[Kind, Any]] = [
    (whole(1), 0),
    (whole(0, 3), 4),
    (whole(0), 1.0),
    (whole(0), "1"),
    (whole(0), True),
    (whole(0), None),
    (seconds(), 0),
    (seconds(), -1),
    (seconds(), math.nan),
    (seconds(), math.inf),
    (seconds(), 10**400),
    (seconds(), True),
    (seconds(), "5"),
    (seconds(), None),
    (share(), 0),
    (share(), 1.1),
    (flag(), 1),
    (flag(), "true"),
    (choice("a"), "A"),
    (choice("a"), None),
    (choice("a"), []),
    (text(), b"a"),
    (text(), "a\0b"),
    (text(), None),
    (text(max_bytes=3), "éé"),
    (text(max_bytes=3), "\ud800"),
    (text(blank=False), " "),
    (function("x"), "print"),
    (function("x", synchronous=True), hook),
    (either("x", choice("a"), callable), 5),
]


@pytest.mark.parametrize(("kind", "value"), WRONG)
def test_wrong_values_are_refused(kind: Kind, value: object) -> None:
    """A wrong value is refused with the setting, what is allowed, and the value."""
    with pytest.raises(ConfigError) as error:
        kind.check("it", value)
    assert str(error.value).startswith(f"it must be {kind.allowed}")
    assert str(error.value).endswith(f"not {value!r:.80}")


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        *[(whole(0), word) for word in ("", "x", "1.0", "1_000", "\u0661", "-1", "0x1", "9" * 5000)],
        *[(seconds(), word) for word in ("", "none", "nan", "inf", "1e999", "1.2.3", ".", "5s")],
        *[(flag(), word) for word in ("", "maybe", "2")],
        (choice("a"), "b"),
        (text(max_bytes=1), "ab"),
    ],
)
def test_wrong_text_is_refused(kind: Kind, written: str) -> None:
    """What Python would read as a number and nobody else is no number."""
    with pytest.raises(ConfigError, match=r"^it must be"):
        kind.read("it", written)


@pytest.mark.parametrize("make", [lambda: function("a function"), lambda: function("a function", synchronous=True)])
def test_functions_cannot_be_written(make: Callable[[], Kind]) -> None:
    """A function belongs into the code, and the error says so."""
    with pytest.raises(ConfigError, match="it cannot be written as text: it must be a function, or None, given as"):
        make().read("it", "print")


@pytest.mark.parametrize("value", [5, "se\0cret"])
def test_secrets_are_not_repeated(value: object) -> None:
    """A wrong secret is refused without being shown, in chained errors neither."""
    with pytest.raises(ConfigError, match="its value is not shown") as error:
        text(secret=True).check("it", value)
    assert repr(value) not in str(error.value)
    assert error.value.__context__ is None
