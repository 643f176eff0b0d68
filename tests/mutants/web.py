"""Mutants of a request's side: the middleware, and the way from a replica home."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ("MUTANTS",)

MIDDLEWARE, REPLICA = "web/middleware.py", "web/replica.py"

MUTANTS = (
    Mutant(
        "middleware-starts-for-nobody",
        MIDDLEWARE,
        """
        await db._lender.borrow(db)
        _must_be_there(request)
        """,
        """
        await db._lender.borrow(db)
        """,
        "a client that leaves between the borrow and the handler does not start it",
        "R3",
        (
            "tests/web/test_disconnects.py::test_left_between_the_hand_over_and_the_handler",
            "tests/web/test_disconnects.py::test_left_while_a_hook_made_the_connection_ready",
        ),
    ),
    Mutant(
        "middleware-begins-for-nobody",
        MIDDLEWARE,
        """
        _must_be_there(request)
        try:
            response = await handler(request)
        """,
        """
        try:
            response = await handler(request)
        """,
        "a client that leaves while its transaction begins does not start its handler",
        "R3",
        ("tests/web/test_disconnects.py::test_left_while_the_transaction_began",),
    ),
    Mutant(
        "middleware-runs-before-it-borrows",
        MIDDLEWARE,
        """
        db.handling = True
        db.running = False
        """,
        """
        db.handling = True
        db.running = True
        """,
        "a request that waits before its handler is refused by a drain, and goes when its client does",
        "R3",
        ("tests/web/test_disconnects.py::test_a_client_leaves_the_queue",),
    ),
    Mutant(
        "middleware-keeps-the-connection",
        MIDDLEWARE,
        """
        db._end("the end of its handler")
        if around is not None:
        """,
        """
        db._ended = "the end of its handler"
        if around is not None:
        """,
        "the connection comes back whatever the handler does",
        "R2",
        ("tests/web/test_middleware.py::test_the_connection_comes_back",),
    ),
    Mutant(
        "middleware-stays-attached",
        MIDDLEWARE,
        """
        pool.attached -= 1
        source.attached -= source is not pool
        """,
        """
        pool.attached -= 1
        """,
        "a replica that ends waits for those only who may still ask it",
        "T3",
        ("tests/faults/test_replica_shared.py::test_a_drain_waits_for_the_requests_of_every_scope",),
    ),
    Mutant(
        "middleware-commits-a-400",
        MIDDLEWARE,
        """
        if getattr(response, "status", web.HTTPInternalServerError.status_code) >= web.HTTPBadRequest.status_code:
        """,
        """
        if getattr(response, "status", web.HTTPInternalServerError.status_code) > web.HTTPBadRequest.status_code:
        """,
        "a transactional request that answers with 400 or above is rolled back",
        "R7",
        ("tests/web/test_middleware_transactional.py::test_commit_below_400_and_rollback_otherwise",),
    ),
    Mutant(
        "middleware-undoes-a-redirect",
        MIDDLEWARE,
        """
        return isinstance(error, web.HTTPException) and error.status < web.HTTPBadRequest.status_code
        """,
        """
        return isinstance(error, web.HTTPException) and error.status < web.HTTPMultipleChoices.status_code
        """,
        "a transactional request that raises a redirect is committed",
        "R7",
        ("tests/web/test_middleware_transactional.py::test_commit_below_400_and_rollback_otherwise",),
    ),
    Mutant(
        "middleware-answers-inside-an-answer",
        MIDDLEWARE,
        """
        if isinstance(ours, PoolScopeError) and not answer_begun(request):
        """,
        """
        if isinstance(ours, PoolScopeError):
        """,
        "an error in the middle of an answer cuts it off, and no second one is inside of it",
        "A11",
        ("tests/web/test_middleware_streaming.py::test_an_error_in_the_middle_of_an_answer_cuts_it_off",),
    ),
    Mutant(
        "middleware-keeps-the-socket-in-a-drain",
        MIDDLEWARE,
        """
        if pool.gate.draining:
            _close_after(response)
        return response
        """,
        """
        return response
        """,
        "during a drain every answer says that its connection closes",
        "A7",
        ("tests/web/test_responses_drain.py::test_every_answer_says_that_the_connection_closes",),
    ),
    Mutant(
        "middleware-inner-scope-gives-way",
        MIDDLEWARE,
        """
        if match.http_exception is not None or (around is not None and _is_of_this_pass(around, pool, match)):
        """,
        """
        if match.http_exception is not None or around is not None:
        """,
        "the scope of a sub-application goes before an outer one of the same key",
        "T3",
        ("tests/web/test_scope_apps.py::test_the_inner_scope_wins_over_an_outer_one_of_the_same_key",),
    ),
    Mutant(
        "middleware-outer-scope-is-lost",
        MIDDLEWARE,
        """
        if _home_of(around) is not pool:
            request[self.key] = around
        """,
        """
        if _home_of(around) is pool:
            request[self.key] = around
        """,
        "behind the handler of a sub-application the key is the outer scope's again",
        "T3",
        ("tests/web/test_scope_apps.py::test_the_inner_scope_wins_over_an_outer_one_of_the_same_key",),
    ),
    Mutant(
        "replica-sends-its-load-home",
        REPLICA,
        """
        if self.source is self.home or (gate.slots and not gate.draining):
        """,
        """
        if self.source is self.home:
        """,
        "a replica that is only busy does not send its load to the primary",
        "T3",
        ("tests/faults/test_replica_shared.py::test_a_replica_that_is_only_busy",),
    ),
    Mutant(
        "replica-keeps-them-to-its-end",
        REPLICA,
        """
        if self.source is self.home or (gate.slots and not gate.draining):
        """,
        """
        if self.source is self.home or gate.slots:
        """,
        "while the replica's pool ends, its requests are served at home",
        "T3",
        ("tests/faults/test_replica_shared.py::test_the_replica_ends_while_another_application_reads_from_it",),
    ),
    Mutant(
        "replica-gives-to-another-pool",
        REPLICA,
        """
        self.source.take_back(slot)
        """,
        """
        self.home.take_back(slot)
        """,
        "a replica's connection goes back to the replica's pool, and to no other scope",
        "T3",
        ("tests/faults/test_replica.py::test_each_request_goes_where_it_belongs",),
    ),
)
