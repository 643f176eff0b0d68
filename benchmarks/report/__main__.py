"""Make docs/benchmarks.md, its pictures and docs/figures from one run of the benchmark or several.

python -m benchmarks.report benchmarks/results/results.json [...] [--docs docs]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from . import figures
from .page import page
from .plots import draw
from .results import Results

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    runs = [Results.read(path) for path in arguments.results]
    write(runs, draw(runs, arguments.docs / "images"), arguments.docs)


def write(runs: Sequence[Results], pictures: Sequence[str], docs: Path) -> None:
    """Write the pages; a study that these runs have not measured has none."""
    folder = docs / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for name, text in figures.pages(runs, pictures).items():
        (folder / f"{name}.md").write_text(text)
    (docs / "benchmarks.md").write_text(page(runs, pictures))


if __name__ == "__main__":
    main()
