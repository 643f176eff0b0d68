"""The documentation site: built without a warning and without a network, and every link in it leads somewhere."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

import aiohttp_poolscope as poolscope
from tests.kit.documents import DOCUMENTS, ROOT, name_of, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs"
DIAGRAMS = sorted([*DOCS.glob("images/gate-*.svg"), *DOCS.glob("images/shutdown-*.svg")])
SVG = "{http://www.w3.org/2000/svg}"


def build(source_folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """What ``make docs`` runs."""
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html"]
    places = ["-d", str(output.with_name("doctrees")), str(source_folder), str(output)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *places], env=env, capture_output=True, text=True, timeout=300, check=False)


@dataclasses.dataclass
class Site:
    """The built pages, and what the build said."""

    folder: Path
    said: str
    code: int

    def pages(self) -> dict[Path, Page]:
        return {path: Page(path.read_text()) for path in sorted(self.folder.rglob("*.html"))}


class Page(HTMLParser):
    """What a page links to, what it loads, and where it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.ids.add(found["id"])
        if "src" in found:
            self.loaded.append(found["src"])
        if "href" in found:
            (self.links if tag == "a" else self.loaded).append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    output = tmp_path_factory.mktemp("docs") / "html"
    run = build(DOCS, output)
    return Site(output, run.stdout + run.stderr, run.returncode)


def is_outside(link: str) -> bool:
    return bool(urlsplit(link).scheme) or link.startswith("//")


def wrong_links(site: Site) -> Iterator[str]:
    """Links within the site that lead nowhere, and others that are no addresses."""
    pages = site.pages()
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if is_outside(link):
                if not is_address(link):
                    yield f"{path.name}: {link} is no address"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{path.name}: {link} does not exist"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{path.name}: {link} has no such anchor"


def is_address(link: str) -> bool:
    """Whether it looks like one; nobody is asked."""
    parts = urlsplit(link)
    if parts.scheme == "data":
        return link.startswith("data:image/")
    host = parts.hostname or ""
    return parts.scheme == "https" and "." in host and " " not in link and not host.startswith("127.")


def from_elsewhere(site: Site) -> Iterator[str]:
    """Scripts, pictures, style sheets and fonts that would need a network."""
    for path, page in site.pages().items():
        yield from (f"{path.name}: {link}" for link in page.loaded if is_outside(link) and not link.startswith("data:"))
    for path in sorted(site.folder.rglob("*.css")):
        for link in re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)", path.read_text()):
            yield f"{path.name}: {link}"


def test_it_is_built_without_a_warning(site: Site) -> None:
    """Every page is read, every reference found, and every page stands in the table of contents."""
    assert (site.code, site.said) == (0, "")


def test_every_link_leads_somewhere(site: Site) -> None:
    """Each href and src of each page is a file of the site, with its anchor; others look like addresses."""
    assert len(site.pages()) > len(list(DOCS.glob("*.md")))
    assert list(wrong_links(site)) == []


def test_it_needs_no_network(site: Site) -> None:
    """Nothing that a page shows or runs comes from another host."""
    assert list(from_elsewhere(site)) == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ('<a href="gone.html">', "gone.html does not exist"),
        ('<a href="#nowhere">', "#nowhere has no such anchor"),
        ('<a href="why.html#nowhere">', "why.html#nowhere has no such anchor"),
        ('<a href="https://no host/">', "is no address"),
        ('<a href="http://127.0.0.1:8080/">', "is no address"),
        ('<img src="images/gone.svg">', "images/gone.svg does not exist"),
        ('<script src="https://cdn.example.org/a.js">', "https://cdn.example.org/a.js"),
        ('<link href="//fonts.example.org/a.css">', "//fonts.example.org/a.css"),
    ],
)
def test_the_checks_can_fail(tmp_path: Path, spoil: str, complaint: str) -> None:
    """A page with one wrong link in it is found out, and one without is not."""
    small = Site(tmp_path, "", 0)
    (tmp_path / "why.html").write_text('<a id="here" href="gate.html#there">')
    page = tmp_path / "gate.html"
    page.write_text('<p id="there"><a href="why.html#here"><a href="#there"><a href="https://example.org/">')
    assert [*wrong_links(small), *from_elsewhere(small)] == []
    page.write_text(page.read_text() + spoil)
    found = [*wrong_links(small), *from_elsewhere(small)]
    assert found
    assert all(complaint in each for each in found)


def test_a_broken_reference_stops_the_build(tmp_path: Path) -> None:
    """A page that links to none is a failure of ``make docs``, and says where."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "conf.py").write_text('extensions = ["myst_parser"]\n')
    (folder / "index.md").write_text("# Title\n\n[a link](gone.md)\n")
    run = build(folder, tmp_path / "html")
    assert run.returncode != 0
    assert "index.md:3" in run.stderr


def test_every_page_of_the_folder_is_on_the_site(site: Site) -> None:
    """No Markdown file is left out."""
    for path in DOCS.rglob("*.md"):
        assert (site.folder / path.relative_to(DOCS).with_suffix(".html")).is_file(), path


def test_the_reference_has_every_public_name(site: Site) -> None:
    """Whatever can be imported from the package, each event and each public method has an entry."""
    ids = set().union(*(page.ids for path, page in site.pages().items() if path.parent.name == "reference"))
    wanted = {f"aiohttp_poolscope.{name}" for name in poolscope.__all__ if name not in ("__version__", "events")}
    wanted |= {
        f"aiohttp_poolscope.events.{name}" for name in poolscope.events.__all__ if name not in ("Events", "KINDS")
    }
    for owner in (poolscope.PoolScope, poolscope.Transaction, poolscope.ScopedCursor, poolscope.PoolConfig):
        public = (name for name in dir(owner) if not name.startswith("_"))
        wanted |= {f"aiohttp_poolscope.{owner.__name__}.{name}" for name in public}
    assert wanted - ids == set()


def test_the_reference_has_every_setting_with_its_default(site: Site) -> None:
    """Each setting stands there with what it is without being set, and what it takes."""
    text = (site.folder / "reference" / "settings.html").read_text()
    for name, kind in poolscope.config.SETTINGS.items():
        entry = text.partition(f'id="aiohttp_poolscope.PoolConfig.{name}"')[2].partition("</dl>")[0]
        default = repr(poolscope.PoolConfig.__dataclass_fields__[name].default).replace("'", '"')
        plain = re.sub(r"<[^>]+>", "", entry).replace("&quot;", '"')
        assert f"Default: {default}. It takes {kind.allowed.split(chr(39))[0]}" in plain, name


@pytest.mark.parametrize("path", DIAGRAMS, ids=lambda path: path.name)
def test_a_diagram_stands_on_its_own(path: Path) -> None:
    """It is well-formed, says in words what it shows, needs nothing else, and has colours for a dark page."""
    text = path.read_text()
    root = ET.fromstring(text)
    assert root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text
    assert "url(http" not in text


@pytest.mark.parametrize("path", DIAGRAMS, ids=lambda path: path.name)
def test_a_diagram_is_shown(path: Path) -> None:
    """Some page has it, with words in its place for whoever cannot see it."""
    shown = re.compile(rf"!\[[^\]]+\]\(images/{re.escape(path.name)}\)")
    assert any(shown.search(page.read_text()) for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_block_is_overlooked(path: Path) -> None:
    """What a parser of Markdown takes for a fenced block, tests/kit/documents.py does too, and nothing else."""
    fences = [
        (each.info.strip(), each.content) for each in MarkdownIt().parse(path.read_text()) if each.type == "fence"
    ]
    seen = [(block.language, block.body) for block in read(path) if block.language or block.body]
    contents = "{toctree}"  # some are fenced by colons, which only the site knows
    assert [each for each in seen if each[0] != contents] == [each for each in fences if each[0] != contents]
