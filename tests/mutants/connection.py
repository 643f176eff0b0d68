"""Mutants of connection, transaction and stream; and of the open connection below them, the driver's link."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ("MUTANTS",)

CONNECTION, TRANSACTION, STREAM = "connection/connection.py", "connection/transaction.py", "connection/stream.py"
LINK, OUTCOME = "driver/link.py", "driver/outcome.py"

MUTANTS = (
    Mutant(
        "connection-old-lease-will-do",
        CONNECTION,
        """
        if self._lease != lease:
        """,
        """
        if self._lease < lease:
        """,
        "a cursor, a stream or a transaction of a lease that has ended is of no use",
        "C13",
        ("tests/connection/test_connection.py::test_nothing_of_one_lease_reaches_the_next",),
    ),
    Mutant(
        "connection-ended-and-lent",
        CONNECTION,
        """
        if self._is_ended:  # while it waited: nobody else would give this connection back
            self._give_back()
        """,
        """
        """,
        "a borrow whose request ends while it waits gives its connection back",
        "R2",
        ("tests/connection/test_connection.py::test_ended_while_it_waits",),
    ),
    Mutant(
        "connection-failed-borrow-goes-on",
        CONNECTION,
        """
        try:
            await self._lender.borrow(self, timeout)
        finally:
            self._borrowing = False
        """,
        """
        await self._lender.borrow(self, timeout)
        self._borrowing = False
        """,
        "after a borrow that was refused the connection may be asked again",
        "B2",
        ("tests/connection/test_connection.py",),
    ),
    Mutant(
        "connection-inner-block-gives-back",
        CONNECTION,
        """
        self._mine = not self._db.held
        """,
        """
        self._mine = True
        """,
        "an acquire() block inside another one does not give back what the outer one has borrowed",
        "",
        ("tests/connection/test_connection.py::test_acquire_by_await_and_by_block",),
    ),
    Mutant(
        "connection-release-cuts-a-transaction",
        CONNECTION,
        """
        if self._depth and self._link is not None and not self._link.closed:
        """,
        """
        if self._depth and self._link is not None and self._link.closed:
        """,
        "release() inside transaction() is refused",
        "R7",
        (
            "tests/connection/test_connection.py",
            "tests/web/test_middleware_transactional.py::test_a_release_inside_is_an_error",
        ),
    ),
    Mutant(
        "connection-writes-into-an-abandoned-stream",
        CONNECTION,
        """
        if self._streaming:
            await self._end_stream()
        cursor = link.cursor()
        """,
        """
        cursor = link.cursor()
        """,
        "what comes after a stream that was dropped halfway is not in its transaction, and lost with it",
        "R7",
        ("tests/connection/test_stream.py",),
    ),
    Mutant(
        "connection-revoked-statement-goes-on",
        CONNECTION,
        """
        if self._link is not None:
            self._link.fail(error)
        self._end(why)
        """,
        """
        self._end(why)
        """,
        "the statement of a lease that is taken away fails, and says why",
        "O3",
        ("tests/pool/test_pool.py::test_max_lease",),
    ),
    Mutant(
        "transaction-commits-the-cancelled",
        TRANSACTION,
        """
        await self._end(link, undo=kind is not None)
        """,
        """
        await self._end(link, undo=isinstance(error, Exception))
        """,
        "a transaction() block that is cancelled is rolled back",
        "R7",
        ("tests/connection/test_transactions.py",),
    ),
    Mutant(
        "transaction-failed-without-a-word",
        TRANSACTION,
        """
        if failed and not undo:
        """,
        """
        if failed and undo:
        """,
        "COMMIT of a failed transaction says that nothing was written",
        "C14",
        ("tests/connection/test_transactions.py::test_commit_of_a_failed_transaction",),
    ),
    Mutant(
        "transaction-lost-without-a-word",
        TRANSACTION,
        """
        if kind is None:
            db._check_lease(self._lease)
            raise TransactionFailed("the connection was lost inside the transaction: nothing was written")
        """,
        """
        """,
        "a transaction() block whose connection has died does not end as if it were committed",
        "R7",
        ("tests/connection/test_transactions.py", "tests/connection/test_transactions_edges.py"),
    ),
    Mutant(
        "transaction-begun-by-the-cancelled",
        TRANSACTION,
        """
        if self._savepoint is None and not isinstance(error, Exception):
            with contextlib.suppress(Exception):
                await self._end(link, undo=True)
        raise
        """,
        """
        raise
        """,
        "who catches a cancellation of BEGIN does not go on inside a transaction",
        "R7",
        ("tests/connection/test_transactions_edges.py::test_a_cancelled_begin_that_is_caught",),
    ),
    Mutant(
        "transaction-failed-begin-counts",
        TRANSACTION,
        """
        if db._lease == self._lease:
            db._depth -= 1
        if self._savepoint is None and not isinstance(error, Exception):
        """,
        """
        if self._savepoint is None and not isinstance(error, Exception):
        """,
        "after a BEGIN that failed the next transaction() is no savepoint",
        "R7",
        ("tests/connection/test_transactions_edges.py",),
    ),
    Mutant(
        "transaction-cut-short-is-kept",
        TRANSACTION,
        """
        except asyncio.CancelledError:
            link.fail(DatabaseUnavailable("closed: the task was cancelled while its transaction ended"))
            raise
        """,
        """
        """,
        "a COMMIT that was cancelled is not followed by anything on its connection",
        "R7",
        ("tests/faults/test_abandoned.py::test_a_commit_ends_with_its_client_and_its_connection",),
    ),
    Mutant(
        "transaction-overlap-is-committed",
        TRANSACTION,
        """
        if self._db._depth > self._level:
        """,
        """
        if self._db._depth < self._level:
        """,
        "two tasks with a transaction each on one connection do not commit half of one",
        "X6",
        ("tests/connection/test_transactions_edges.py",),
    ),
    Mutant(
        "stream-failed-stays-in-its-transaction",
        STREAM,
        """
        with contextlib.suppress(Exception):
            await self._end("ROLLBACK")
        """,
        """
        self._state = "ended"
        """,
        "a stream that fails leaves no transaction open",
        "R7",
        ("tests/connection/test_stream.py",),
    ),
    Mutant(
        "stream-closed-stays-open",
        STREAM,
        """
        if self._state == "open":
            await self._end("ROLLBACK")
        self._state = "ended"
        """,
        """
        self._state = "ended"
        """,
        "aclose() of a stream ends its transaction",
        "R7",
        ("tests/connection/test_stream.py",),
    ),
    Mutant(
        "stream-ended-too-early",
        STREAM,
        """
        db._streaming = ABANDONED  # until it is done: what came next would be in its transaction
        await link.run(link.cursor(), how)
        db._streaming = NOT_STREAMING
        """,
        """
        db._streaming = NOT_STREAMING
        await link.run(link.cursor(), how)
        """,
        "what comes after a stream that could not be ended is not in its transaction",
        "R7",
        ("tests/connection/test_stream.py::test_closed_while_it_is_read",),
    ),
    Mutant(
        "stream-dropped-late-hits-another-lease",
        STREAM,
        """
        if self._own and self._state == "open" and self._db._lease == self._lease:
        """,
        """
        if self._own and self._state == "open":
        """,
        "a stream that is dropped after its lease does nothing to the next one",
        "C13",
        ("tests/connection/test_stream.py::test_dropped_after_its_lease",),
    ),
    Mutant(
        "stream-ends-the-transaction-around-it",
        STREAM,
        """
        self._own = not db.in_transaction
        """,
        """
        self._own = db.in_transaction
        """,
        "a stream inside transaction() leaves that one open",
        "R7",
        ("tests/connection/test_stream.py",),
    ),
    Mutant(
        "link-timer-goes-on",
        LINK,
        """
        if timer is not None:
            timer.cancel()
        """,
        """
        """,
        "the timeout of a statement that has ended hits no later one",
        "B4",
        ("tests/driver/test_hazards.py::test_a_timeout_keeps_the_connection", "tests/connection/test_statements.py"),
    ),
    Mutant(
        "link-closes-after-the-time-out",
        LINK,
        """
        if self._closing is not None:
            self._closing.cancel()
            self._closing = self._late = None
        """,
        """
        if self._closing is not None:
            self._closing = self._late = None
        """,
        "a statement that was cancelled in time keeps its connection",
        "B4",
        ("tests/driver/test_hazards.py::test_a_timeout_is_over_with_its_statement",),
    ),
    Mutant(
        "link-forgets-what-ended-late",
        LINK,
        """
        self._spoiled = self.status == IN_TRANSACTION
        raise self._late
        """,
        """
        raise self._late
        """,
        "a statement that was told to be too late is not committed after all",
        "R7",
        ("tests/connection/test_outcomes.py::test_late_success_fails_its_transaction",),
    ),
    Mutant(
        "outcome-lost-commit-is-not-done",
        OUTCOME,
        """
        doubtful = sent is not None and may_have_written(sent, in_transaction=in_transaction)
        """,
        """
        doubtful = sent is not None and not in_transaction and may_have_written(sent, in_transaction=in_transaction)
        """,
        "a COMMIT whose answer was lost is not told as something to try again",
        "",
        ("tests/connection/test_outcomes.py::test_the_answer_is_lost",),
    ),
    Mutant(
        "link-does-not-await-its-cancel",
        LINK,
        """
        if self.cancelling is not None:
            # Not before it has arrived: it would hit the next statement, which may be somebody else's.
            await asyncio.wait((self.cancelling,))
        """,
        """
        """,
        "a request to cancel that is under way never hits the next statement",
        "X2",
        ("tests/driver/test_hazards.py::test_a_cancel_under_way_never_hits_the_next_statement",),
    ),
)
