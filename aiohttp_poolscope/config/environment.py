"""Environment: settings that are written in variables."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from aiohttp_poolscope.errors import ConfigError

from .dsn import parse
from .libpq import LIBPQ
from .values import BOOLEANS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .values import Kind

__all__ = ("NOT_GIVEN", "Variables")

NOT_GIVEN = LIBPQ.keys() | {"password", "application_name"}
"""None given for one of these is the same as not given. For the others it switches something off."""

_HABITS = {
    "USERNAME": "USER",
    "PASS": "PASSWORD",
    "PASSWD": "PASSWORD",
    "DATABASE": "NAME",
    "HOSTNAME": "HOST",
    "URI": "URL",
    "DSN": "URL",
}
"""What other frameworks call a variable. Ignored, it would end in a connection to elsewhere."""


class Variables:
    """Reads the settings of a pool from variables. ``settings``: what each takes, by its name."""

    def __init__(self, settings: Mapping[str, Kind]) -> None:
        self._settings = settings
        self._spellings = {
            **{name.upper(): name for name in (*LIBPQ, *settings)},
            "NAME": "dbname",
            "SSL": "sslmode",
            "POOL_MIN": "minsize",
            "POOL_MAX": "maxsize",
        }

    def read(
        self, prefix: str, environ: Mapping[str, str], overridden: Collection[str]
    ) -> tuple[str | None, dict[str, object]]:
        """Return the DSN, and the settings found in variables, by name."""
        if not prefix:
            raise ConfigError("prefix must not be empty: USER, HOST and KEY would be read as settings")
        url = self._find_url(prefix, environ)
        sources: dict[str, str] = {}
        found: dict[str, object] = {}
        for variable in sorted(environ):
            suffix = variable.removeprefix(prefix)
            if suffix == variable or suffix in ("DATABASE_URL", "URL"):
                continue
            name = self._spellings.get(suffix)
            if name is None:
                meant = _HABITS.get(suffix)
                if not meant or not (url or environ.get(prefix + meant) or self._spellings.get(meant) in overridden):
                    self._refuse_near_miss(prefix, suffix, meant)
            elif name not in overridden and (environ[variable] or name not in NOT_GIVEN):
                value = self._read_variable(variable, name, environ[variable])
                if name in found and found[name] != value:
                    raise ConfigError(f"{sources[name]} and {variable} set {name} to different values")
                sources[name], found[name] = variable, value
        if url is None:
            return None, found
        self._refuse_second_address(url, environ[url], sources, found)
        return environ[url], found

    def _refuse_second_address(
        self, url: str, dsn: str, sources: Mapping[str, str], found: Mapping[str, object]
    ) -> None:
        written = parse(dsn, self._settings.keys(), where=url)
        for name in found.keys() & {"host", "port", "user", "password", "dbname"}:
            if written.get(name, found[name]) != found[name]:
                raise ConfigError(f"{url} and {sources[name]} set {name} to different values")

    def _find_url(self, prefix: str, environ: Mapping[str, str]) -> str | None:
        own = [name for name in (f"{prefix}DATABASE_URL", f"{prefix}URL") if environ.get(name)]
        if len({environ[name] for name in own}) > 1:
            raise ConfigError(f"{own[0]} and {own[1]} are different")
        if own:
            return own[0]
        shared = prefix == "DB_" or not environ.get(f"{prefix}HOST")
        return "DATABASE_URL" if shared and environ.get("DATABASE_URL") else None

    def _read_variable(self, variable: str, name: str, written: str) -> object:
        label = f"{variable} ({name})"
        if name in self._settings:
            return self._settings[name].read(label, written)
        if variable.endswith("SSL") and (word := written.strip().lower()) in BOOLEANS:
            return "require" if BOOLEANS[word] else "disable"
        LIBPQ[name].read(label, written)
        return written

    def _refuse_near_miss(self, prefix: str, suffix: str, meant: str | None) -> None:
        known = (*self._spellings, "DATABASE_URL", "URL")
        # Wide enough for a slip of the keyboard, too narrow for DB_SERVICE_HOST, which Kubernetes sets.
        near = [meant] if meant else difflib.get_close_matches(suffix.removeprefix("POOL_"), known, 1, 0.8)
        if near:
            hint = f"did you mean {prefix}{near[0]}?"
        elif suffix.startswith("POOL_"):
            hint = f"the pool's size is {prefix}POOL_MIN and {prefix}POOL_MAX"
        else:
            return
        raise ConfigError(f"{prefix}{suffix} is not a setting; {hint}")
