"""The documents say what is true: tables match the code, links and names exist, and each block says how it is tried."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import TYPE_CHECKING, Any

import pytest

import aiohttp_poolscope as poolscope
from aiohttp_poolscope import errors
from aiohttp_poolscope.config import settings
from tests.kit.documents import (
    DOCUMENTS,
    README,
    ROOT,
    TRIED,
    WRITTEN,
    blocks,
    headings,
    marked,
    missing,
    name_of,
    names,
    section,
    table,
    without_blocks,
    wrong_blocks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GUARANTEES = ROOT / "docs" / "guarantees.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
COMMANDS = ROOT / "docs" / "command-line.md"

INTERNAL = {"client", "handling", "held", "method", "reported", "route", "running", "task", "where", "who"}
"""What the scope and the pool keep on a connection: no promise to a handler."""


def wrong_settings(text: str) -> Iterator[str]:
    """The table of settings against PoolConfig."""
    rows = {name: row for row in table(section(text, "Settings")) for name in names(row[0])}
    fields = {field.name: field for field in dataclasses.fields(poolscope.PoolConfig)}
    if rows.keys() != settings.SETTINGS.keys():
        yield f"settings: {sorted(rows.keys() ^ settings.SETTINGS.keys())} on one side only"
    for name in rows.keys() & settings.SETTINGS.keys():
        default, unit = re.findall(r"^`(.*)`( s)?$", rows[name][1])[0]
        if default != repr(fields[name].default).replace("'", '"'):
            yield f"settings: {name} has the default {fields[name].default!r}, not {default}"
        if bool(unit) != settings.SETTINGS[name].allowed.startswith("a number of seconds"):
            yield f"settings: {name} has the wrong unit"


def wrong_errors(text: str) -> Iterator[str]:
    """The table of errors against errors.py."""
    said = {names(row[0])[0]: (int(row[1]), row[2].strip("`")) for row in table(section(text, "Errors"))}
    kinds = [getattr(errors, name) for name in errors.__all__ if name != "PoolScopeError"]
    true = {kind.__name__: (kind.status, kind.code) for kind in kinds}
    for name in said.keys() | true.keys():
        if said.get(name) != true.get(name):
            yield f"errors: {name} is {true.get(name)}, not {said.get(name)}"
    if any((kind.status == 503) != (kind.retry_after is not None) for kind in kinds):
        yield "errors: Retry-After is not on every 503, or on others"


def wrong_methods(text: str) -> Iterator[str]:
    """The table of methods against ScopedConnection, and the scope's own anywhere in the text."""
    said = {name for row in table(section(text, "The connection")) for name in names(row[0])}
    true = {name for name in dir(poolscope.ScopedConnection) if not name.startswith("_")} - INTERNAL
    if said != true:
        yield f"methods: {sorted(said ^ true)} on one side only"
    for name in dir(poolscope.PoolScope):
        if not name.startswith("_") and not re.search(rf"[.`]{name}\b", text):
            yield f"methods: PoolScope.{name} is not mentioned"
    marks = {name.partition(".")[2] for row in table(section(text, "Marks")) for name in names(row[0].replace("@", ""))}
    if marks != {"no_connection", "lazy", "eager", "replica", "transactional"}:
        yield f"marks: {sorted(marks)}"


def wrong_commands(text: str) -> Iterator[str]:
    """Make's targets and the files named in commands."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = "\n".join(block.body for block in blocks(text, "sh"))
    for target in re.findall(r"^make ([\w-]+)", commands, re.MULTILINE) + re.findall(r"`make ([\w-]+)", text):
        if target not in targets:
            yield f"commands: make {target} does not exist"
    for file in re.findall(r"python ([\w/]+\.py)", re.sub(r"<!--.*?-->", "", text)):
        if not (ROOT / file).exists():
            yield f"commands: {file} does not exist"


def wrong_links(text: str, home: Path) -> Iterator[str]:
    """Links to files and to headings."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = (home / file).resolve() if file else None
        if target is not None and not target.exists():
            yield f"links: {file} does not exist"
        elif heading:
            there = text if target is None else target.read_text()
            slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings(there)]
            if heading not in slugs:
                yield f"links: no heading #{heading}"


def wrong_tests(text: str) -> Iterator[str]:
    """Tests that a document names, and that do not exist."""
    for each in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        if complaint := missing(*each):
            yield f"tests: {complaint}"


PROMISES = {
    *(f"R{n}" for n in range(1, 9)), *(f"B{n}" for n in range(1, 10)),
    *(f"S{n}" for n in range(1, 6)), *(f"F{n}" for n in range(1, 6)), "O3", "O5",
}  # fmt: skip
HAZARDS = {*(f"P{n}" for n in range(1, 15)), *(f"C{n}" for n in range(1, 19)), *(f"A{n}" for n in range(1, 18))}


def wrong_guarantees(text: str) -> Iterator[str]:
    """Each promise and each hazard has one row, with a test; each defence that is named is there."""
    rows = table(text.partition("\n## Figures\n")[0])  # which have commands instead of tests
    ids = [row[0] for row in rows]
    for each in sorted(PROMISES | HAZARDS):
        if ids.count(each) != 1:
            yield f"guarantees: {each} has {ids.count(each)} rows"
    for row in rows:
        if "`tests/" not in row[-1] and not row[-1].startswith("documented"):
            yield f"guarantees: {row[0]} has no test"
        for place in names(row[2]) if row[0] in HAZARDS else []:
            if not exists(place):
                yield f"guarantees: {row[0]}: {place} does not exist"


def exists(place: str) -> bool:
    """Whether it is a setting, or ``module.Class.method`` of the package."""
    module, *rest = place.split(".")
    if not rest:
        return place in settings.SETTINGS
    try:
        found: Any = importlib.import_module(f"aiohttp_poolscope.{module}")
        for name in rest:
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return False
    return True


def wrong(path: Path, text: str) -> list[str]:
    """Everything that is wrong with a document."""
    found = [*wrong_links(text, path.parent), *wrong_commands(text), *wrong_tests(text)]
    found += wrong_blocks(marked(text, WRITTEN.get(name_of(path))))
    if path == README:
        for check in (wrong_settings, wrong_errors, wrong_methods):
            found += check(text)
    if path == GUARANTEES:
        found += wrong_guarantees(text)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_document_is_right(path: Path) -> None:
    """Tables, links, commands and names of tests are what the code has; every block is tried, or says why not."""
    assert wrong(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "pattern", "instead", "complaint"),
    [
        (README, r"\| `maxsize` \| `10` ", "| `maxsize` | `11` ", "settings: maxsize has the default 10, not 11"),
        (README, r"\| `reset` \| .*\n", "", "settings: ['reset'] on one side only"),
        (README, r"`60.0` s", "`60.0`", "settings: idle_in_transaction_timeout has the wrong unit"),
        (README, r"`QueryTimeout` \| 504", "`QueryTimeout` | 503", "errors: QueryTimeout is (504, 'query-timeout')"),
        (README, r"\| `fetchval\(", "| `fetchvalue(", "methods: ['fetchval', 'fetchvalue'] on one side only"),
        (README, r"begin_drain", "drain", "methods: PoolScope.begin_drain is not mentioned"),
        (README, r"make test ", "make tests ", "commands: make tests does not exist"),
        (README, r"\(LICENSE\)", "(LICENCE)", "links: LICENCE does not exist"),
        (README, r"\(#limits\)", "(#limit)", "links: no heading #limit"),
        (README, r"<!-- test: .*\n", "", "has no test"),
        (README, r"-->\n```python", "-->\n\n```python", "stands above no block: GET"),
        (README, r"<!-- test: rehearse -->\n```sh", "> ```sh", "has no test"),
        (README, r"<!-- test: rehearse -->\n```sh", "```{code-block} sh", "has no test"),
        (README, r"<!-- test: rehearse -->\n```sh", "```{eval-rst}\n.. code-block:: sh", "has no test"),
        (README, r"<!-- test: GET", "<!-- test: FETCH", "has an unknown directive: FETCH"),
        (README, r"<!-- test: rehearse", "<!-- test: rehearse; run", "has an unknown directive: rehearse; run"),
        (README, r"<!-- test: run", "<!-- test: pytest 1", "is no Python: pytest 1"),
        (README, r"(<!-- test: elsewhere .*) -->", r"\1ly -->", "is tried nowhere: tests/"),
        (README, r"<!-- test: await .* -->", "<!-- not tested: -->", "has no test"),
        (README, r"<!-- test: await .* -->", "<!-- not tested:   -->", "has no reason"),
        (README, r"```python", "```py", "is no Python"),
        (COMMANDS, r"<!-- test: (shape.*) -->", r"<!-- test: \1; log it -->", "has more than one step: shape"),
        (TUTORIAL, r"<!-- test: stop .*", "<!-- test: run -->", "stands above no block: run"),
        (COMMANDS, r"<!-- test: run", "<!-- test: elsewhere nowhere", "unknown directive: elsewhere"),
        (GUARANTEES, r"\| P1 \|", "| P99 |", "guarantees: P1 has 0 rows"),
        (GUARANTEES, r"::test_", "::test_no_", "does not exist"),
        (GUARANTEES, r"`gate\.Gate", "`gate.Goat", "does not exist"),
        (GUARANTEES, r"(\| R1 \|.*\|) `.*`", r"\1 soon", "guarantees: R1 has no test"),
    ],
)
def test_the_checks_can_fail(path: Path, pattern: str, instead: str, complaint: str) -> None:
    """A document with one thing wrong in it is found out."""
    text = path.read_text()
    spoiled = re.sub(pattern, instead, text, count=0 if pattern == "begin_drain" else 1)
    assert spoiled != text
    assert any(complaint in each for each in wrong(path, spoiled))


def test_no_page_is_excused_that_is_not_there() -> None:
    """Whatever page or test is named as an exception exists."""
    assert {*WRITTEN, *TRIED} <= {name_of(path) for path in DOCUMENTS}
    assert [missing(*test.split("::")) for test in TRIED.values()] == [None] * len(TRIED)
