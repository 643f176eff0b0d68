"""curl, as far as pages and the demo's hints use it: for machines without one. It needs nothing but Python."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

if TYPE_CHECKING:
    from pathlib import Path


def on_path(folder: Path) -> str:
    """PATH, with a ``curl`` in front that is this file."""
    program = folder / "curl"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {shlex.quote(__file__)} "$@"\n')
    program.chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def main() -> None:
    parser = argparse.ArgumentParser(prog="curl")
    parser.add_argument("-s", action="store_true", help="shows no progress: this one never does")
    parser.add_argument("-d", action="append", default=[], metavar="NAME=VALUE", help="sent as a form, by POST")
    parser.add_argument("-m", type=float, metavar="SECONDS", help="how long it may take")
    parser.add_argument("-w", default="", metavar="FORMAT", help="shown after the answer")
    parser.add_argument("url")
    options = parser.parse_args()
    request = Request(options.url, "&".join(options.d).encode() or None)
    try:
        answer = build_opener(ProxyHandler({})).open(request, timeout=options.m)
    except HTTPError as error:
        answer = error
    with answer:
        sys.stdout.buffer.write(answer.read())
        told = {"%{http_code}": str(answer.status), "%{content_type}": answer.headers["Content-Type"], r"\n": "\n"}
    for name, value in told.items():
        options.w = options.w.replace(name, value)
    sys.stdout.buffer.write(options.w.encode())


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"curl: {error}")
