"""The documentation site: ``sphinx-build -W --keep-going -b html docs build/docs``. It needs no network.

The pages are Markdown that reads well in the repository, too. What has to be different on the site is changed here,
when a page is read: links that leave ``docs/``, and Mermaid diagrams, which only the repository's viewer draws.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from sphinx.ext.napoleon import Config, GoogleDocstring  # noqa: E402

import aiohttp_poolscope  # noqa: E402
from aiohttp_poolscope.config import SETTINGS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

project = "aiohttp-poolscope"
author = "the authors of aiohttp-poolscope"
copyright = f"{author}, Apache-2.0"  # noqa: A001
version = release = aiohttp_poolscope.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]

html_theme = "furo"
html_title = "aiohttp-poolscope"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
pygments_dark_style = "github-dark"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7ab7ff", "color-brand-content": "#7ab7ff"},
}

myst_enable_extensions = {"colon_fence"}
myst_heading_anchors = 4  # the anchors that the repository's viewer makes: #some-heading

default_role = "code"  # a few docstrings have `single` backticks
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
# Extras that are not installed here: their modules are documented all the same.
autodoc_mock_imports = [name for name in ("prometheus_client", "opentelemetry", "rich") if find_spec(name) is None]
copybutton_exclude = ".linenos, .gp, .go"

FROM_ROOT = {
    "reference/guide": ("README.md", "# The guide"),
    "reference/changelog": ("CHANGELOG.md", "# Changelog"),
    "reference/contributing": ("CONTRIBUTING.md", "# Contributing"),
    "security": ("SECURITY.md", "# Security"),
}
"""Pages that are a file of the repository's root, and the heading they begin with here."""

FIGURES = """
:::{toctree}
:hidden:
:glob:

figures/*
:::
"""
"""What the page of the benchmarks has below it: as many pages as there are studies with figures."""

EXAMPLES = "<!-- the table is made when the site is built: docs/conf.py -->"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
CODE = re.compile(r"^(```|:::).*?^\1$", re.MULTILINE | re.DOTALL)


def read_page(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn the Markdown of the repository into that of the site."""
    home = DOCS / docname
    if docname in FROM_ROOT:
        file, title = FROM_ROOT[docname]
        source[0] = f"{title}\n{from_root(file)}"
        home = ROOT / file
    if docname == "benchmarks":
        source[0] += FIGURES
    source[0] = source[0].replace(EXAMPLES, "\n".join(examples()))
    source[0] = outside_of_code(source[0], home.parent, docname)


def from_root(file: str) -> str:
    """A file of the root, without its title and its table of contents: the site has one of its own."""
    text = (ROOT / file).read_text().partition("\n")[2]
    return re.sub(r"^## Contents\n.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)


def examples() -> Iterator[str]:
    """A table of the programs in ``examples``, each with its own first line."""
    yield from ("| program | what it shows |", "| --- | --- |")
    folder = ROOT / "examples"
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".py", ".yaml", ".yml", ".ini"}:
            first = path.read_text().partition("\n")[0].strip('#;" ').rstrip()
            yield f"| [{path.relative_to(folder)}](../../examples/{path.relative_to(folder)}) | {first} |"


def outside_of_code(text: str, home: Path, docname: str) -> str:
    """Change the links of a page, and leave its blocks of code alone."""
    parts: list[str] = []
    end = 0
    for block in CODE.finditer(text):
        parts += [change_links(text[end : block.start()], home, docname), block[0]]
        end = block.end()
    return "".join([*parts, change_links(text[end:], home, docname)])


def change_links(text: str, home: Path, docname: str) -> str:
    """Let each link lead where it leads in the repository: to the page, or to a copy of the file."""
    pages = {(ROOT / file).resolve(): page for page, (file, _) in FROM_ROOT.items()}
    up = "../" * docname.count("/")

    def there(link: re.Match[str]) -> str:
        target = (home / link["path"]).resolve()
        anchor = link["anchor"] or ""
        if target in pages:
            return f"{up}{pages[target]}.md{anchor}"
        if target.is_dir():
            return f"{up}reference/examples.md"
        if not target.exists():
            return link[0]  # let Sphinx complain
        return Path(*[".."] * (docname.count("/")), relative(target)).as_posix() + anchor

    return LINK.sub(there, text)


def relative(target: Path) -> Path:
    """The way to a file from ``docs``."""
    return target.relative_to(DOCS) if target.is_relative_to(DOCS) else Path("..", target.relative_to(ROOT))


def defaults() -> Iterator[tuple[str, list[str]]]:
    """For each setting, its default and what it takes, as lines of its description."""
    for field in dataclasses.fields(aiohttp_poolscope.PoolConfig):
        if field.name in SETTINGS:
            default = repr(field.default).replace("'", '"')
            yield field.name, ["", f"Default: ``{default}``. It takes {SETTINGS[field.name].allowed}."]


DEFAULTS = dict(defaults())
GOOGLE = Config(napoleon_numpy_docstring=False)


def read_docstring(_app: Sphinx, what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring, and add the default of a setting: a slot does not show it."""
    if what == "module":
        lines[:] = with_literal_blocks(lines)
    if what not in {"attribute", "property", "data"}:  # in these Napoleon takes "None: never" for a type and its text
        lines[:] = GoogleDocstring(lines, GOOGLE, what=what).lines()
    owner, _, setting = name.rpartition(".")
    if owner == "aiohttp_poolscope.PoolConfig":
        lines += DEFAULTS.get(setting, [])


def with_literal_blocks(lines: list[str]) -> Iterator[str]:
    """What is indented in the docstring of a module is code, also where no ``::`` says so."""
    before = ""
    for line in lines:
        if line.startswith("    ") and before and not before.startswith("    ") and not before.endswith("::"):
            yield from ("::", "")
        yield line
        before = line or before


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring)
