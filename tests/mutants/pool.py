"""Mutants of what lends: pool, queue and opener."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ("MUTANTS",)

POOL, QUEUE, OPENER = "pool/pool.py", "pool/queue.py", "pool/opener.py"

MUTANTS = (
    Mutant(
        "pool-lends-the-dead",
        POOL,
        """
        if not slot.link.raw.closed:
            db._attach(slot)
        """,
        """
        if slot.link.raw is not None:
            db._attach(slot)
        """,
        "an idle connection whose end is known is lent to nobody",
        "P14",
        ("tests/pool/test_faults.py::test_dead_idle_connections_reach_nobody",),
    ),
    Mutant(
        "pool-dead-lend-is-a-lease",
        POOL,
        """
        self.gate.cancel_lend(slot)
        self.inventory.discard_dead(slot)
        """,
        """
        self.inventory.discard_dead(slot)
        """,
        "a borrow that meets a dead connection is counted once, by how it ends",
        "O1",
        ("tests/pool/test_faults.py::test_dead_idle_connections_reach_nobody",),
    ),
    Mutant(
        "pool-hand-over-of-the-dead",
        POOL,
        """
        while slot.link.closed:  # it died between the hand-over and now
            if slot in self.gate.slots:
                self.gate.cancel_lend(slot)
            self.inventory.discard_dead(slot)
            slot = await self.queue.wait(db, begun, end)
        """,
        """
        """,
        "a connection that dies between its hand-over and its waiter's waking is replaced",
        "P14",
        ("tests/pool/test_faults.py::test_handed_over_and_dead",),
    ),
    Mutant(
        "pool-dirty-is-clean",
        POOL,
        """
        if link.clean and not link.session_changed and now < slot.expires and not self._always_restore:
        """,
        """
        if not link.closed and not link.session_changed and now < slot.expires and not self._always_restore:
        """,
        "a connection that comes back in a transaction is rolled back before anybody gets it",
        "P8",
        ("tests/connection/test_connection.py::test_a_dirty_return",),
    ),
    Mutant(
        "pool-gives-the-old",
        POOL,
        """
        if link.clean and not link.session_changed and now < slot.expires and not self._always_restore:
        """,
        """
        if link.clean and not link.session_changed and not self._always_restore:
        """,
        "a connection that has become too old while lent is not lent again",
        "B7",
        ("tests/pool/test_pool.py::test_max_lifetime_on_return",),
    ),
    Mutant(
        "pool-gives-a-changed-session",
        POOL,
        """
        if link.clean and not link.session_changed and now < slot.expires and not self._always_restore:
        """,
        """
        if link.clean and now < slot.expires and not self._always_restore:
        """,
        "what a statement leaves in the session goes with its lease",
        "P9",
    ),
    Mutant(
        "pool-forgets-its-hook-on-return",
        POOL,
        """
        self._always_restore = config.reset not in {"auto", "rollback"} or config.on_release is not None
        """,
        """
        self._always_restore = config.reset not in {"auto", "rollback"}
        """,
        "on_release runs after every lease",
        "",
        ("tests/pool/test_hooks.py::test_hooks_in_order",),
    ),
    Mutant(
        "pool-expire-forgets-the-opening",
        POOL,
        """
        self.opener.expire()
        self.inventory.retire(lambda _: True)
        """,
        """
        self.inventory.retire(lambda _: True)
        """,
        "expire() replaces also what is being opened at that moment",
        "B7",
        ("tests/pool/test_edges.py::test_expire_while_a_connection_is_being_opened",),
    ),
    Mutant(
        "pool-full-checks-nothing",
        POOL,
        """
        if self.gate.closed or self.gate.busy:
        """,
        """
        if self.gate.closed or len(self.gate.slots) >= self.gate.maxsize:
        """,
        "a stale idle connection is checked for a waiter, also in a full pool",
        "B7",
        ("tests/pool/test_pool.py::test_check_after_idle",),
    ),
    Mutant(
        "pool-close-revokes-nothing",
        POOL,
        """
        for _, db in holders(self.gate):
            db._revoke("the application has stopped")
        """,
        """
        """,
        "whoever still holds a connection at the end is told why it is gone",
        "S2",
        ("tests/pool/test_drain_limits.py::test_a_handler_that_will_not_end_loses_its_connection",),
    ),
    Mutant(
        "pool-waits-without-housekeeper",
        POOL,
        """
        self.replenish()
        self._queued()
        """,
        """
        self.replenish()
        """,
        "a borrow that is not served ends with its acquire_timeout",
        "B2",
        ("tests/pool/test_pool.py::test_exhausted", "tests/pool/test_edges.py"),
    ),
    Mutant(
        "queue-cancelled-place-stays",
        QUEUE,
        """
        except BaseException:  # whatever it is, no place may be left behind: the next connection would go to it
        """,
        """
        except Exception:  # whatever it is, no place may be left behind: the next connection would go to it
        """,
        "a waiter that is cancelled leaves no place behind, and loses no connection",
        "P3",
        ("tests/pool/test_pool.py::test_a_cancelled_waiter_loses_nothing",),
    ),
    Mutant(
        "queue-serves-who-has-left",
        QUEUE,
        """
        if place.outcome is Outcome.LENT and place.client_gone():
            gate.withdraw(place, Outcome.CLIENT_GONE, now)
        """,
        """
        """,
        "a client that leaves between the hand-over and its waking gets no connection",
        "R3",
        ("tests/web/test_disconnects.py::test_each_check_is_enough",),
    ),
    Mutant(
        "queue-short-wait-without-timer",
        QUEUE,
        """
        if end - joined < SOON:
            self._set_timer(place, joined)
        """,
        """
        """,
        "a short acquire(timeout=...) ends in time, and does not wait for a sweep",
        "B2",
        ("tests/pool/test_pool.py::test_acquire_timeout_of_one_borrow",),
    ),
    Mutant(
        "queue-timer-for-the-others",
        QUEUE,
        """
        if isinstance(place, QueuedBorrow) and place.end - now < SOON and place.timer is None:
        """,
        """
        if isinstance(place, QueuedBorrow) and place.end - now > SOON and place.timer is None:
        """,
        "a borrow ends with its acquire_timeout, however short of it the sweep was",
        "B2",
    ),
    Mutant(
        "queue-timed-out-sleeps-on",
        QUEUE,
        """
        self._gate.withdraw(place, Outcome.TIMED_OUT, self._now())
        place.wake()
        """,
        """
        self._gate.withdraw(place, Outcome.TIMED_OUT, self._now())
        """,
        "a borrow that has timed out is told so",
        "B2",
        ("tests/pool/test_pool.py::test_exhausted",),
    ),
    Mutant(
        "queue-waits-for-the-unreachable",
        QUEUE,
        """
        if place.outcome is None and self._opener.unreachable:
            gate.withdraw(place, Outcome.FAILED, joined)
        """,
        """
        """,
        "while the breaker is open nobody waits for the database",
        "B3",
        ("tests/pool/test_faults.py::test_breaker",),
    ),
    Mutant(
        "opener-keeps-its-room",
        OPENER,
        """
        except BaseException:
            room.free()
            raise
        """,
        """
        except asyncio.CancelledError:
            room.free()
            raise
        """,
        "an attempt to connect that has failed is not the last one",
        "B3",
        ("tests/pool/test_faults.py::test_breaker",),
    ),
    Mutant(
        "opener-opens-for-a-closed-pool",
        OPENER,
        """
        if self._gate.closed:  # the user's code swallowed its cancellation: nobody would close this connection
            link.close()
            raise asyncio.CancelledError
        """,
        """
        """,
        "a connection that opens when the pool is closed is closed as well",
        "S4",
        ("tests/pool/test_hooks_edges.py::test_an_opener_that_swallows_its_cancellation",),
    ),
    Mutant(
        "opener-does-not-pause",
        OPENER,
        """
        await asyncio.sleep(self.breaker.pause(random.random()))  # noqa: S311
        """,
        """
        await asyncio.sleep(0.0 * self.breaker.pause(random.random()))  # noqa: S311
        """,
        "a database that is away is asked now and then, and not without a pause",
        "B3",
        ("tests/faults/test_database_away.py::test_one_probe_at_a_time",),
    ),
    Mutant(
        "opener-fails-nobody",
        OPENER,
        """
        if self.unreachable:
            self._gate.fail()
        """,
        """
        """,
        "when the breaker opens, those who wait are refused at once",
        "B3",
        ("tests/pool/test_hooks.py::test_on_connect_that_recovers",),
    ),
    Mutant(
        "opener-asks-for-waiters-only",
        OPENER,
        """
        looking = self._asked or not self.breaker.closed
        """,
        """
        looking = self._asked
        """,
        "the breaker closes by itself, also with nobody waiting",
        "B3",
        (
            "tests/pool/test_faults.py::test_the_breaker_closes_with_nobody_waiting",
            "tests/pool/test_faults.py::test_breaker",
        ),
    ),
    Mutant(
        "opener-spreads-upwards",
        OPENER,
        """
        return begun + self._max_lifetime * (1 - 0.1 * random.random())  # noqa: S311
        """,
        """
        return begun + self._max_lifetime * (1 + 0.1 * random.random())  # noqa: S311
        """,
        "no connection is lent after max_lifetime",
        "B7",
        ("tests/pool/test_pool.py::test_lifetimes_do_not_end_together",),
    ),
)
