"""What the value of a setting may be: how text becomes one, which are right, how an error says so."""

from __future__ import annotations

import inspect
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp_poolscope.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

# PostgreSQL keeps its time-outs as milliseconds in 32 bits. One range for all durations, the
# client's own too, is easier to remember than two.
SHORTEST, LONGEST = 0.001, 2_147_483
_INT_MAX = 2_147_483_647
BOOLEANS = {
    **dict.fromkeys(("true", "on", "yes", "1"), True),
    **dict.fromkeys(("false", "off", "no", "0"), False),
}
_NONE_WORDS = frozenset({"", "none", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of value.

    ``take`` returns the value as it will be kept, ``parse`` makes one of text; both raise ValueError
    for what they refuse. A kind whose ``parse`` is None cannot be written in a DSN or a variable.
    Values of a ``secret`` kind are never repeated in an error.
    """

    allowed: str
    take: Callable[[Any], object]
    parse: Callable[[str], object] | None = None
    none_words: frozenset[str] | None = None
    secret: bool = False

    def check(self, name: str, value: object) -> Any:
        """Return the value to keep, or raise a ConfigError that names the setting."""
        if value is None and self.none_words is not None:
            return None
        with suppress(ValueError):
            return self.take(value)
        # Outside the ``with``, so that the error carries no context that might repeat a secret.
        raise self._refusal(name, value)

    def read(self, name: str, text: str) -> Any:
        """Return the value that ``text``, from a DSN or a variable, stands for."""
        if self.parse is None:
            raise ConfigError(
                f"{name} cannot be written as text: it must be {self._allowed()}, given as a keyword argument"
            )
        if self.none_words is not None and text.lower() in self.none_words:
            return None
        with suppress(ValueError):
            return self.take(self.parse(text))
        raise self._refusal(name, text)

    def _allowed(self) -> str:
        return self.allowed if self.none_words is None else f"{self.allowed}, or None"

    def _refusal(self, name: str, value: object) -> ConfigError:
        if self.secret:
            return ConfigError(f"{name} must be {self._allowed()} (its value is not shown)")
        return ConfigError(f"{name} must be {self._allowed()}, not {value!r:.80}")


def _number(text: str) -> int | float:
    # int() and float() also take "1_000" and digits of other scripts.
    if not re.fullmatch(r"\s*[-+]?[0-9.]+(e[-+]?[0-9]+)?\s*", text, re.IGNORECASE | re.ASCII):
        raise ValueError
    return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)


def _ranged(
    types: tuple[type[int], ...] | tuple[type[int], type[float]],
    low: float,
    high: float,
    allowed: str,
    *,
    optional: bool,
) -> Kind:
    keep = types[-1]
    none_words = _NONE_WORDS if optional else None

    def take(value: Any) -> object:
        # A comparison that is not true also refuses nan and the infinities.
        if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
            raise ValueError
        return keep(value)

    return Kind(allowed=allowed, take=take, parse=_number, none_words=none_words)


def whole(low: int, high: int = _INT_MAX) -> Kind:
    """A whole number from ``low`` to ``high``."""
    return _ranged((int,), low, high, f"a whole number from {low} to {high}", optional=False)


def seconds(low: float = SHORTEST, *, optional: bool = False) -> Kind:
    """A duration, kept as float."""
    allowed = f"a number of seconds from {low:g} to {LONGEST}"
    return _ranged((int, float), low, LONGEST, allowed, optional=optional)


def share() -> Kind:
    """A part of a whole: above 0, at most 1."""
    return _ranged((int, float), 5e-324, 1, "a number above 0 and at most 1", optional=False)


def flag() -> Kind:
    """True or False."""

    def take(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError  # noqa: TRY004 - every refusal is a ValueError here
        return value

    def parse(text: str) -> bool:
        if (word := text.strip().lower()) not in BOOLEANS:
            raise ValueError
        return BOOLEANS[word]

    return Kind(allowed="True or False", take=take, parse=parse)


def choice(*words: str, note: str = "") -> Kind:
    """One of a few words; ``note`` says why there are not more."""

    def take(value: object) -> object:
        if not isinstance(value, str) or value not in words:
            raise ValueError
        return value

    *most, last = map(repr, words)
    allowed = f"{', '.join(most)} or {last}" if most else last
    return Kind(allowed=allowed + note, take=take, parse=str.strip)


def text(*, optional: bool = False, max_bytes: int = 0, secret: bool = False, blank: bool = True) -> Kind:
    """Any string without NUL characters; where ``optional``, the empty one means None."""

    def take(value: object) -> str:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str) or "\0" in value or not (blank or value.strip()):
            raise ValueError
        if max_bytes and len(value.encode(errors="surrogateescape")) > max_bytes:
            raise ValueError
        return value

    kind = "a string" if blank else "a string that is not blank"
    size = f" of at most {max_bytes} bytes" if max_bytes else ""
    none_words = frozenset({""}) if optional else None
    return Kind(allowed=kind + size, take=take, parse=str, none_words=none_words, secret=secret)


def function(allowed: str, *, synchronous: bool = False) -> Kind:
    """A function or None: in code only, there is no way to write one in a DSN."""

    def take(value: object) -> object:
        if not callable(value) or (synchronous and inspect.iscoroutinefunction(value)):
            raise ValueError
        return value

    return Kind(allowed=allowed, take=take, none_words=_NONE_WORDS)


def either(allowed: str, first: Kind, accepts: Callable[[Any], bool]) -> Kind:
    """What ``first`` takes, also as text, and in code whatever ``accepts`` says yes to."""

    def take(value: object) -> object:
        return value if accepts(value) else first.take(value)

    return Kind(
        allowed=allowed,
        take=take,
        parse=first.parse,
        none_words=first.none_words,
        secret=first.secret,
    )
