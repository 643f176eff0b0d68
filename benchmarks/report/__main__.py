"""Make docs/benchmarks.md and its pictures from one run of the benchmark or several.

python -m benchmarks.report benchmarks/results/results.json [...] [--docs docs]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .page import document
from .plots import draw
from .results import Results

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    runs = [Results.read(path) for path in arguments.results]
    pictures = draw(runs, arguments.docs / "images")
    (arguments.docs / "benchmarks.md").write_text(document(runs, pictures))


if __name__ == "__main__":
    main()
