"""Events: what happens to a pool, as frozen dataclasses, and who is told of it.

``scope.on_event(callback)`` asks for all of them, ``scope.on_event(callback, Leaked, Unserved)`` for some, or for all
of a family. What nobody asks for costs nothing: it is not even made.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, get_args

from .errors import ConfigError
from .stats import Duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .stats import Lease

    Callback = Callable[["Event"], object]

T = TypeVar("T")

__all__ = (
    "KINDS",
    "Acquired",
    "BreakerClosed",
    "BreakerOpened",
    "Cancelled",
    "ClientLeft",
    "Closed",
    "ConnectFailed",
    "DrainFinished",
    "DrainStarted",
    "Event",
    "Events",
    "Failed",
    "Leaked",
    "LeaseCancelled",
    "Opened",
    "Refused",
    "Released",
    "RequestEvent",
    "ReturnedDirty",
    "ReturnedLate",
    "Shed",
    "SlowStatement",
    "StatementEvent",
    "StatementFailed",
    "TimedOut",
    "Unserved",
    "Waited",
)

CloseReason = Literal["idle", "lifetime", "expired", "dead", "failed", "shutdown"]
"""``idle_timeout``; ``max_lifetime``; ``expire()`` or a change of roles; found dead; not mended; the end."""

Fault = Literal["statement", "timeout", "connection"]
"""What was wrong when a statement failed: the statement itself, its time limit, or the connection under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the pool with the key ``pool``.

    ``at`` is Unix time in seconds, for people and logs; ``monotonic`` (``time.monotonic()``) is for durations.
    """

    kind: ClassVar[str]
    pool: str
    at: float
    monotonic: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEvent(Event):
    """Something that happened for a request. All four are None outside of requests.

    ``path`` is as the client sent it, ``route`` as it was registered, ``request_id`` as ``poolscope.request_id`` says.
    """

    method: str | None = None
    path: str | None = None
    route: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Event):
    """A connection was opened, in ``duration`` seconds."""

    kind: ClassVar[str] = "opened"
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectFailed(Event):
    """An attempt to connect failed, the ``attempt``-th in a row, for the ``cause``."""

    kind: ClassVar[str] = "connect_failed"
    cause: str
    attempt: int
    error: Exception = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Event):
    """A connection was closed, ``unused`` seconds after it came back for the last time."""

    kind: ClassVar[str] = "closed"
    reason: CloseReason
    unused: float
    cause: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired(RequestEvent):
    """A connection was lent, after ``waited`` seconds. Every borrow that is served has this one."""

    kind: ClassVar[str] = "acquired"
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited(RequestEvent):
    """A borrow was served that had to queue, for ``waited`` seconds. It comes with ``Acquired``."""

    kind: ClassVar[str] = "waited"
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(RequestEvent):
    """A connection came back, ``held`` seconds after it was lent."""

    kind: ClassVar[str] = "released"
    held: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unserved(RequestEvent):
    """A borrow ended without a connection, after ``waited`` seconds. ``cause``: what its error says, if it got one."""

    waited: float
    cause: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut(Unserved):
    """Not served within ``acquire_timeout``."""

    kind: ClassVar[str] = "timed_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Unserved):
    """Refused at once: the queue is full, or the pool drains."""

    kind: ClassVar[str] = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed(Unserved):
    """Shed, because the queue stands or is crowded."""

    kind: ClassVar[str] = "shed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLeft(Unserved):
    """Its client left before its turn."""

    kind: ClassVar[str] = "client_gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Unserved):
    """Its task was cancelled."""

    kind: ClassVar[str] = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Unserved):
    """The database cannot be reached."""

    kind: ClassVar[str] = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementEvent(RequestEvent):
    """A statement that ran for ``duration`` seconds. ``statement`` is its text, without any value in it."""

    statement: str
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementFailed(StatementEvent):
    """A statement raised ``error``.

    ``fault`` says what was wrong: the statement, its time limit, or the connection. ``cause`` is the name of the
    error's class: its message may hold values, and is in ``error`` only.
    """

    kind: ClassVar[str] = "error"
    fault: Fault
    sqlstate: str | None
    cause: str
    error: Exception = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStatement(StatementEvent):
    """A statement took longer than ``slow_threshold``, however it ended."""

    kind: ClassVar[str] = "slow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaked(RequestEvent):
    """A connection is held for longer than ``leak_threshold``, by ``lease``, which runs ``statement``, if any."""

    kind: ClassVar[str] = "leaked"
    lease: Lease
    statement: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedLate(RequestEvent):
    """What was reported as leaked has come back."""

    kind: ClassVar[str] = "returned_late"
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedDirty(RequestEvent):
    """A connection came back inside a transaction, and no error was the reason. Its writes are rolled back.

    Its handler or block ended well, or called ``release()``; ``lease`` has the line that borrowed. A stream that was
    left early is none, unless its statement may write.
    """

    kind: ClassVar[str] = "returned_dirty"
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCancelled(RequestEvent):
    """The drain ends a ``lease`` that has outlasted ``drain_grace``: its task is cancelled, or it is taken away."""

    kind: ClassVar[str] = "lease_cancelled"
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOpened(Event):
    """Requests are refused at once from now on: connecting has failed ``attempt`` times in a row, for the ``cause``."""

    kind: ClassVar[str] = "breaker_opened"
    cause: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerClosed(Event):
    """The database answers again, after ``duration`` seconds."""

    kind: ClassVar[str] = "breaker_closed"
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainStarted(Event):
    """The pool takes no new work, and has ``in_use`` connections to wait for."""

    kind: ClassVar[str] = "drain_started"
    in_use: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainFinished(Event):
    """The pool is closed: ``served`` borrows since the drain began, ``cancelled`` tasks; by force: ``forced``."""

    kind: ClassVar[str] = "drain_finished"
    duration: float
    served: int
    cancelled: int
    forced: tuple[str, ...]


KINDS: tuple[type[Event], ...] = (
    Opened,
    ConnectFailed,
    Closed,
    Acquired,
    Waited,
    Released,
    TimedOut,
    Refused,
    Shed,
    ClientLeft,
    Cancelled,
    Failed,
    StatementFailed,
    SlowStatement,
    Leaked,
    ReturnedLate,
    ReturnedDirty,
    LeaseCancelled,
    BreakerOpened,
    BreakerClosed,
    DrainStarted,
    DrainFinished,
)
"""Every kind there is; the others are families of these."""


class Events:
    """Who listens to what. ``subscribed`` has an entry for each kind that somebody asked for, and only for these.

    ``durations`` has those who want no event, but a number of seconds.
    """

    __slots__ = ("_on_callback_error", "durations", "subscribed")

    def __init__(self, on_callback_error: Callable[[str, BaseException], None]) -> None:
        self.subscribed: dict[type[Event], tuple[Callback, ...]] = {}
        self.durations: dict[Duration, list[Callable[[float], None]]] = {of: [] for of in get_args(Duration)}
        self._on_callback_error = on_callback_error

    def listen(self, callback: Callback, *kinds: type[Event]) -> None:
        """Call ``callback(event)`` for these kinds and families; none given: for all."""
        for wanted in kinds:
            if not (isinstance(wanted, type) and issubclass(wanted, Event)):
                raise ConfigError(f"on_event(..., {wanted!r}): must be a class of aiohttp_poolscope.events")
        for kind in KINDS:
            if not kinds or issubclass(kind, kinds):
                self.subscribed[kind] = (*self.subscribed.get(kind, ()), callback)

    @contextlib.contextmanager
    def listening(self, callback: Callback, *kinds: type[Event]) -> Iterator[None]:
        """Call ``callback(event)`` for these kinds and families inside the block."""
        self.listen(callback, *kinds)
        try:
            yield
        finally:
            for kind, callbacks in tuple(self.subscribed.items()):
                if callbacks == (callback,):
                    del self.subscribed[kind]
                else:
                    self.subscribed[kind] = tuple(each for each in callbacks if each is not callback)

    def measure(self, callback: Callable[[float], object], of: Duration) -> None:
        """Call ``callback(seconds)`` for each duration of this kind."""
        if of not in self.durations:
            raise ConfigError(f"on_duration(..., {of!r}): must be one of {', '.join(map(repr, self.durations))}")
        self.durations[of].append(lambda seconds: self._call(callback, seconds, of))

    def emit(self, event: Event) -> None:
        """Call who listens, one after the other."""
        for callback in self.subscribed.get(type(event), ()):
            self._call(callback, event, event.kind)

    def _call(self, callback: Callable[[T], object], told: T, kind: str) -> None:
        """What a callback raises is no trouble of the request's."""
        try:
            callback(told)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - somebody else's code
            with contextlib.suppress(Exception):  # a logging filter of the user's may raise as well
                self._on_callback_error(kind, error)
