"""The mutants themselves: each is a mistake that can be made in the source as it is."""

from __future__ import annotations

import re

import pytest

from tests.kit.documents import missing

from .command import MUTANTS, main
from .mutant import PACKAGE, ROOT, Mutant, Rotten
from .table import GUARANTEES, UNTRIED, known
from .trial import SIMULATIONS, Finding


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_in_its_place(mutant: Mutant) -> None:
    """Its place is found exactly once, what it makes of the file is another program, and it names tests that exist."""
    source, whole = mutant.source(), (ROOT / PACKAGE / mutant.file).read_text()
    assert compile(source, mutant.file, "exec").co_code
    assert source != whole
    assert mutant.breaks.endswith(".") is False
    if mutant.promise:
        assert re.search(rf"^\| {mutant.promise} \|", GUARANTEES.read_text(), re.MULTILINE), mutant.promise
    for test in mutant.tests:
        assert missing(*test.split("::")) is None, test


def test_there_are_many_and_each_has_a_name() -> None:
    """At least forty, in every room of the core, and no two of one name."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 40
    assert {mutant.file.partition("/")[0] for mutant in MUTANTS} >= {"gate", "pool", "connection", "web"}


def test_the_table_has_them_all() -> None:
    """docs/guarantees.md says of each mutant by what it is found."""
    assert set(known()) == {mutant.name for mutant in MUTANTS}
    assert not {str(Finding()), UNTRIED} & set(known().values())


def test_a_place_that_has_gone_is_an_error() -> None:
    """Mutants cannot rot: an edit of what is not there, or there twice, raises."""
    for before in ("self.gone = True", "elif state is CHECKING:\n    self.checking -= 1"):
        with pytest.raises(Rotten):
            Mutant("rotten", "gate/gate.py", before, "pass", "nothing").source()


def test_a_place_keeps_its_indentation() -> None:
    """Lines are put in as deep as those that they replace."""
    deep = Mutant("deep", "gate/gate.py", "waiter.slot = slot", "if slot:\n\n    waiter.slot = slot", "nothing")
    assert "                if slot:\n\n                    waiter.slot = slot\n" in deep.source()


def test_the_list_names_each(capsys: pytest.CaptureFixture[str]) -> None:
    """``--list`` runs nothing; ``--only`` chooses by the beginning of a name, and an unknown one is said."""
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [mutant.name for mutant in MUTANTS]
    assert main(["--list", "--only", "drain-"]) == 0
    assert all(line.startswith("drain-") for line in capsys.readouterr().out.splitlines())
    with pytest.raises(SystemExit):
        main(["--only", "no-such-mutant"])


def test_simulations_are_of_files_that_there_are() -> None:
    """What a simulation is said to run is in the package."""
    for simulation in SIMULATIONS:
        assert all((ROOT / PACKAGE / file).exists() for file in simulation.runs), simulation.name
