"""What commands print: with colours by rich on a terminal, plain text anywhere else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.text import Text

    from aiohttp_poolscope.config import PoolConfig

__all__ = ("columns", "console", "places", "show", "styled")

GOOD, NOTED, DOUBTFUL, BAD = "green", "cyan", "yellow", "bold red"
STYLES = {
    **dict.fromkeys(("ok", "healthy"), GOOD),
    **dict.fromkeys(("info", "note"), NOTED),
    **dict.fromkeys(("warning", "warn"), DOUBTFUL),
    **dict.fromkeys(("error", "bad", "sick"), BAD),
}
"""How the first word of a line looks on a terminal."""


def console() -> Console | None:
    """The console of rich, where there is rich, and a terminal that can move its cursor; None means plain text."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    on = Console(highlight=False, soft_wrap=True)
    return None if on.is_dumb_terminal else on  # there rich's live views show nothing before their end


def show(lines: Iterable[str], on: Console | None) -> None:
    """Print lines; on a terminal the word that a line begins with has its colour."""
    if on is None:
        for line in lines:
            print(line, flush=True)
    else:
        on.print(styled(lines))


def styled(lines: Iterable[str]) -> Text:
    """For a terminal."""
    from rich.text import Text  # noqa: PLC0415 - an extra

    texts = []
    for line in lines:
        text = Text(line)
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        if (style := STYLES.get(word.lower().rstrip(":"))) is not None:
            begin = line.index(word)
            text.stylize(style, begin, begin + len(word))
        texts.append(text)
    return Text("\n").join(texts)


def places(config: PoolConfig) -> str:
    """The hosts of a pool, as they were given."""
    return ", ".join(f"{host.host or host.hostaddr or 'the local socket'}:{host.port}" for host in config.hosts)


def columns(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Rows as lines, each column as wide as it must be. ``sides`` has "<" or ">" for each column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            "  " + "  ".join(f"{cell:{side}{width}}" for side, width, cell in zip(sides, widths, row, strict=True))
        ).rstrip()
        for row in rows
    ]
