"""Mutants of what keeps a pool whole: recycler, maintenance, inventory, housekeeper, drain, lifecycle, hooks."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ("MUTANTS",)

RECYCLER, MAINTENANCE, INVENTORY = "pool/recycler.py", "pool/maintenance.py", "pool/inventory.py"
HOUSEKEEPER, DRAIN, LIFECYCLE, HOOKS = "pool/housekeeper.py", "pool/drain.py", "pool/lifecycle.py", "pool/hooks.py"

MUTANTS = (
    Mutant(
        "recycler-gives-the-dead",
        RECYCLER,
        """
        if done and slot.link.clean and now < slot.expires and not self._gate.closed:
        """,
        """
        if done and now < slot.expires and not self._gate.closed:
        """,
        "a connection that came back dead is lent to nobody",
        "F1",
        ("tests/pool/test_faults.py", "tests/pool/test_edges.py"),
    ),
    Mutant(
        "recycler-waits-for-ever",
        RECYCLER,
        """
        async with asyncio.timeout(limit):
            await work
        """,
        """
        async with asyncio.timeout(None):
            await work
        """,
        "a silent connection costs its borrower one ping limit at most",
        "F2",
        ("tests/pool/test_faults.py::test_a_frozen_idle_connection_reaches_nobody",),
    ),
    Mutant(
        "recycler-checks-alone",
        RECYCLER,
        """
        if now - other.since > self._check_after_idle:
        """,
        """
        if now - other.since < self._check_after_idle:
        """,
        "all idle connections that a firewall has dropped are found out in the time of one",
        "B7",
        ("tests/faults/test_ageing.py::test_a_firewall_costs_one_borrower_one_ping_limit",),
    ),
    Mutant(
        "maintenance-rolls-back-the-sound",
        MAINTENANCE,
        """
        if not link.closed and link.status != IDLE:
        """,
        """
        if not link.closed and link.status == IDLE:
        """,
        "a connection that comes back in a transaction is rolled back and kept",
        "P8",
        ("tests/connection/test_connection.py::test_a_dirty_return",),
    ),
    Mutant(
        "maintenance-waits-for-no-cancel",
        MAINTENANCE,
        """
        await link.cancel_and_wait()
        """,
        """
        pass
        """,
        "a statement that nobody waits for is ended, its cancel request awaited, and the connection kept",
        "C2",
        ("tests/pool/test_maintenance.py::test_restore_waits_for_a_cancel_under_way",),
    ),
    Mutant(
        "maintenance-full-reset-is-bare",
        MAINTENANCE,
        """
        if config.on_connect is not None:
            await hooks.run(self._lender, config.on_connect, link, keep_settings=True)
        """,
        """
        """,
        "on_connect runs again after a full reset",
        "P9",
        ("tests/connection/test_connection.py::test_a_full_reset_keeps_the_settings",),
    ),
    Mutant(
        "maintenance-failed-hook-leaves-it-open",
        MAINTENANCE,
        """
        except BaseException:
            link.close()
            raise
        """,
        """
        except asyncio.CancelledError:
            link.close()
            raise
        """,
        "a connection whose on_connect has failed is closed",
        "P12",
        ("tests/pool/test_hooks.py::test_on_connect_that_recovers",),
    ),
    Mutant(
        "inventory-closes-twice",
        INVENTORY,
        """
        if slot not in self._gate.slots:
            return
        """,
        """
        """,
        "a connection that is gone already is not counted as closed once more",
        "O1",
        ("tests/pool/test_hooks_edges.py::test_a_repair_that_swallows_its_cancellation", "tests/pool/test_faults.py"),
    ),
    Mutant(
        "inventory-keeps-what-will-not-close",
        INVENTORY,
        """
        try:
            slot.link.close()
        finally:  # whatever the driver, or the loop, has against it: it is lent to nobody again
            self._gate.lost(slot, self._now())
        """,
        """
        slot.link.close()
        if True:
            self._gate.lost(slot, self._now())
        """,
        "a connection that cannot be closed is lent to nobody all the same",
        "X11",
        ("tests/pool/test_faults.py::test_a_connection_that_cannot_be_closed",),
    ),
    Mutant(
        "inventory-retires-at-once",
        INVENTORY,
        """
        if slot.state is SlotState.IDLE:
            self.discard(slot, "expired")
        """,
        """
        if slot.state is not SlotState.GONE:
            self.discard(slot, "expired")
        """,
        "expire() cuts no lease short",
        "B7",
        ("tests/pool/test_pool.py::test_expire",),
    ),
    Mutant(
        "inventory-retires-only-the-idle",
        INVENTORY,
        """
        slot.expires = float("-inf")
        if slot.state is SlotState.IDLE:
        """,
        """
        if slot.state is SlotState.IDLE:
        """,
        "expire() replaces also what is lent, when it comes back",
        "B7",
        ("tests/pool/test_pool.py::test_expire",),
    ),
    Mutant(
        "housekeeper-ends-with-a-mistake",
        HOUSEKEEPER,
        """
        if (more := left_out(self._pool.key, "sweep")) is not None:
            logger.exception("pool %r: a sweep failed%s", self._pool.key, more)
        """,
        """
        if (more := left_out(self._pool.key, "sweep")) is not None:
            logger.exception("pool %r: a sweep failed%s", self._pool.key, more)
        raise
        """,
        "one sweep that fails is not the last one",
        "",
        ("tests/pool/test_edges.py::test_a_sweep_that_fails_is_not_the_last",),
    ),
    Mutant(
        "housekeeper-is-not-started-again",
        HOUSEKEEPER,
        """
        if self._task is not None and self._task.done() and not self._pool.gate.closed:
        """,
        """
        if self._task is None and not self._pool.gate.closed:
        """,
        "whatever has ended the housekeeper, those who wait have one again",
        "B2",
        ("tests/pool/test_edges.py::test_a_wait_ends_although_the_housekeeper_had",),
    ),
    Mutant(
        "housekeeper-starves",
        HOUSEKEEPER,
        """
        if self._now() - self._housekept_at < CALM:  # else those who wait only now and then starve it
        """,
        """
        if self._rush.is_set():
        """,
        "those who wait only now and then do not keep the housekeeper from its work",
        "B7",
        ("tests/pool/test_edges.py::test_waits_that_come_and_go_do_not_stop_the_housekeeper",),
    ),
    Mutant(
        "housekeeper-reports-again",
        HOUSEKEEPER,
        """
        if config.leak_threshold is not None and held > config.leak_threshold and not db.reported:
        """,
        """
        if config.leak_threshold is not None and held > config.leak_threshold:
        """,
        "a lease that is held for too long is reported once",
        "O3",
        ("tests/pool/test_pool.py::test_a_leak_is_reported_with_its_holder",),
    ),
    Mutant(
        "housekeeper-takes-but-does-not-end",
        HOUSEKEEPER,
        """
        db._revoke(f"it was held for more than max_lease ({config.max_lease:g} s)")
        """,
        """
        db._give_back()
        """,
        "after max_lease every use of the connection says why",
        "O3",
        (
            "tests/faults/test_leaks.py::test_after_max_lease_every_use_says_why",
            "tests/pool/test_pool.py::test_max_lease",
        ),
    ),
    Mutant(
        "housekeeper-cancels-any-method",
        HOUSEKEEPER,
        """
        if db.method not in ("GET", "HEAD") or not db.handling or db.task is None:
        """,
        """
        if not db.handling or db.task is None:
        """,
        "cancel_abandoned cancels only a GET or a HEAD",
        "C2",
        ("tests/web/test_disconnects.py::test_cancel_abandoned",),
    ),
    Mutant(
        "housekeeper-cancels-again",
        HOUSEKEEPER,
        """
        elif config.cancel_abandoned and _is_for_nobody(db) and db.task not in self._cancelled:
        """,
        """
        elif config.cancel_abandoned and _is_for_nobody(db):
        """,
        "a handler whose client has left is cancelled once, and can clean up",
        "",
        ("tests/pool/test_edges.py::test_cancel_abandoned_cancels_once",),
    ),
    Mutant(
        "housekeeper-believes-in-silence",
        HOUSEKEEPER,
        """
        if now - since > limit + SILENCE_MARGIN:
        """,
        """
        if since - now > limit + SILENCE_MARGIN:
        """,
        "a statement on a network gone silent ends soon after statement_timeout",
        "C10",
        ("tests/connection/test_statements.py::test_a_silent_network",),
    ),
    Mutant(
        "housekeeper-closes-below-minsize",
        HOUSEKEEPER,
        """
        elif spare and _longer(now - slot.used, config.idle_timeout):
        """,
        """
        elif _longer(now - slot.used, config.idle_timeout):
        """,
        "idle_timeout closes no connection that minsize keeps",
        "B7",
        ("tests/pool/test_pool.py::test_idle_timeout",),
    ),
    Mutant(
        "housekeeper-ping-counts-as-use",
        HOUSEKEEPER,
        """
        elif spare and _longer(now - slot.used, config.idle_timeout):
        """,
        """
        elif spare and _longer(now - slot.since, config.idle_timeout):
        """,
        "a connection that is only kept alive is not used, and ends with idle_timeout",
        "B7",
        ("tests/pool/test_pool.py::test_a_ping_is_no_use",),
    ),
    Mutant(
        "housekeeper-closes-the-young",
        HOUSEKEEPER,
        """
        elif now >= slot.expires:
        """,
        """
        elif now <= slot.expires:
        """,
        "an idle connection is kept until it is too old",
        "B7",
        ("tests/pool/test_pool.py::test_keepalive", "tests/pool/test_pool.py::test_max_lifetime_while_idle"),
    ),
    Mutant(
        "drain-cancels-its-owner",
        DRAIN,
        """
        return [task for task in tasks if task is not None and not task.done() and task is not self._owner]
        """,
        """
        return [task for task in tasks if task is not None and not task.done()]
        """,
        "the task that shuts the application down is not cancelled for the connection it holds",
        "S2",
        ("tests/web/test_scope_edges.py::test_the_application_itself_holds_a_connection",),
    ),
    Mutant(
        "drain-forgets-who-may-ask",
        DRAIN,
        """
        return bool(gate.lent or gate.waiting or gate.repairing or pool.attached)
        """,
        """
        return bool(gate.lent or gate.waiting or gate.repairing)
        """,
        "within drain_grace a handler that runs may still borrow",
        "S1",
        ("tests/pool/test_drain.py::test_a_running_handler_may_still_borrow",),
    ),
    Mutant(
        "drain-waits-for-the-leaked",
        DRAIN,
        """
        return bool(self._pool.gate.repairing or self._pool.gate.handed or self._tasks())
        """,
        """
        return bool(self._pool.gate.repairing or self._pool.gate.lent)
        """,
        "a leaked connection is taken when the grace is over",
        "S2",
        ("tests/pool/test_drain_limits.py::test_a_leaked_connection_cannot_hang_the_exit",),
    ),
    Mutant(
        "drain-grace-is-the-end",
        DRAIN,
        """
        await self._until(begun + config.drain_grace, self._in_use)
        """,
        """
        await self._until(begun + config.drain_timeout, self._in_use)
        """,
        "handlers that outlast drain_grace are cancelled then",
        "A4",
        ("tests/pool/test_drain_limits.py::test_handlers_that_outlast_the_grace_are_cancelled",),
    ),
    Mutant(
        "drain-still-lends-after-the-grace",
        DRAIN,
        """
        pool, now = self._pool, self._now()
        pool.gate.close()
        """,
        """
        pool, now = self._pool, self._now()
        """,
        "after drain_grace nobody borrows",
        "S1",
        ("tests/pool/test_drain_limits.py::test_after_the_grace_others_wait_for_nobody",),
    ),
    Mutant(
        "lifecycle-cancelled-start-leaves-it-open",
        LIFECYCLE,
        """
        except BaseException:
            _alive.discard(self)
            await self.pool.close()
        """,
        """
        except Exception:
            _alive.discard(self)
            await self.pool.close()
        """,
        "a start that is cancelled closes what it has opened",
        "A14",
        ("tests/web/test_scope_start.py::test_a_start_that_is_cancelled_half_way",),
    ),
    Mutant(
        "lifecycle-starts-untried",
        LIFECYCLE,
        """
        await self.pool.opener.fill(max(1, self._config.minsize))
        """,
        """
        await self.pool.opener.fill(self._config.minsize)
        """,
        "a wrong DSN fails the start, also with minsize=0",
        "B6",
        ("tests/web/test_scope_start.py::test_with_minsize_0_the_start_still_connects",),
    ),
    Mutant(
        "lifecycle-drains-twice",
        LIFECYCLE,
        """
        if self._ending is None:
        """,
        """
        if not self.ended:
        """,
        "begin_drain() may be repeated: there is one drain",
        "A8",
        ("tests/pool/test_drain.py::test_drain_begun_by_hand",),
    ),
    Mutant(
        "lifecycle-borrows-do-not-balance",
        LIFECYCLE,
        """
        borrows=gate.borrows - gate.waiting - gate.handed,
        """,
        """
        borrows=gate.borrows - gate.waiting,
        """,
        "the numbers balance at any moment, also between a hand-over and its waiter's waking",
        "O1",
        ("tests/load/test_abort_storm.py::test_a_storm_of_aborted_requests_leaves_nothing_behind",),
    ),
    Mutant(
        "hooks-their-object-goes-on",
        HOOKS,
        """
        held, first._slot, first._link = first._slot, None, None
        """,
        """
        held, first._slot = first._slot, None
        """,
        "the connection that on_acquire was given is of no use after it",
        "R5",
        ("tests/pool/test_hooks.py::test_on_acquire_that_keeps_its_connection",),
    ),
    Mutant(
        "hooks-failed-one-is-lent-again",
        HOOKS,
        """
        slot.expires = float("-inf")
        first._fail()
        """,
        """
        first._fail()
        """,
        "a connection whose on_acquire has failed is closed",
        "",
        ("tests/pool/test_hooks.py::test_on_acquire_that_raises",),
    ),
    Mutant(
        "hooks-leave-things-open",
        HOOKS,
        """
        if db.held and not link.closed and not link.clean:
        """,
        """
        if db.held and link.closed and not link.clean:
        """,
        "a hook that leaves a transaction, a stream or a statement open has failed",
        "",
        ("tests/pool/test_hooks_edges.py::test_on_acquire_that_leaves_something_open",),
    ),
    Mutant(
        "hooks-have-no-limit",
        HOOKS,
        """
        async with asyncio.timeout(max(limit, LEAST)) as timer:
        """,
        """
        async with asyncio.timeout(None) as timer:
        """,
        "on_acquire is part of the borrow, and ends with acquire_timeout",
        "B2",
        ("tests/pool/test_hooks_edges.py::test_on_acquire_that_hangs",),
    ),
)
