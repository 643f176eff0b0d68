"""compose.yaml and kubernetes.yaml are not run here: their form, and every number and name in them that must fit."""

from __future__ import annotations

import configparser
import re
import runpy
import textwrap

import pytest

import aiohttp_poolscope as poolscope

from .test_examples import EXAMPLES, load

HEALTHY = "{condition: service_healthy}"


def outline(text: str) -> dict[str, str]:
    """What block mappings say, by path: ``services.app.restart``. Lists and documents have numbers.

    Of YAML only what these two files use: mappings and lists by indentation, values on one line, literal blocks.
    """
    found: dict[str, str] = {}
    around: list[tuple[int, str]] = []
    counts: dict[str, int] = {}
    literal: tuple[int, str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if literal and (not line.strip() or indent > literal[0]):
            found[literal[1]] += line + "\n"
            continue
        body, literal = re.sub(r"(^| )#.*", "", line).strip(), None
        if body == "---":
            around = [(-1, f"document {number}")]
        if not body or body == "---":
            continue
        while around and around[-1][0] >= indent:
            around.pop()
        while body.startswith("- "):
            parent = around[-1][1] if around else ""
            counts[parent] = counts.get(parent, -1) + 1
            around.append((indent, f"{parent}.{counts[parent]}"))
            body, indent = body[2:], indent + 2
        key = re.fullmatch(r"([\w.-]+):(?: (.+))?", body)
        value = (key[2] if key else body) or ""
        path = ".".join([*(each for _, each in around[-1:]), *([key[1]] if key else [])])
        assert path not in found, f"line {number}: {path} a second time"
        assert well_formed(value), f"line {number}: {value}"
        assert indent % 2 == 0, f"line {number}: an odd indentation"
        assert "\t" not in line, f"line {number}: a tab"
        found[path] = "" if value == "|" else value
        literal = (indent, path) if value == "|" else None
        around.append((indent, path))
    return found


def well_formed(value: str) -> bool:
    """Whether brackets and quotes are closed."""
    plain = re.sub(r'"[^"]*"', "", value)
    return all(plain.count(one) == plain.count(other) for one, other in ("[]", "{}")) and '"' not in plain


@pytest.fixture(scope="module")
def compose() -> dict[str, str]:
    return outline((EXAMPLES / "compose.yaml").read_text())


def seconds(value: str) -> int:
    number = re.fullmatch(r"(\d+)s", value)
    assert number, value
    return int(number[1])


def services(compose: dict[str, str]) -> set[str]:
    return {path.split(".")[1] for path in compose if path.startswith("services.")}


def ini(text: str) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return dict(parser["pgbouncer"])


@pytest.mark.parametrize(
    "wrong",
    ["a: 1\na: 2", "a:\n\tb: 1", "a: [1, 2", "a:\n   b: 1", 'a: "b', "a:\n  - b: 1\n    b: 2"],
)
def test_the_reader_sees_mistakes(wrong: str) -> None:
    """A key twice, a tab, an open bracket or quote, an odd indentation."""
    with pytest.raises(AssertionError):
        outline(wrong)


def test_the_reader_reads() -> None:
    """Mappings in lists in mappings, comments, and literal blocks with whatever is in them."""
    text = "a: 1 # one\nb:\n  - {x: 1}\n  - n: 0\n    value: 'v#'\n  # none\nc:\n  d: |\n    - x: {\n\n    y\n  e:\n"
    lists = {"b": "", "b.0": "{x: 1}", "b.1.n": "0", "b.1.value": "'v#'"}
    assert outline(text) == {"a": "1", "c": "", "c.d": "    - x: {\n\n    y\n", "c.e": "", **lists}


def test_kubernetes_has_form() -> None:
    """Both documents of the manifest can be read, and are about one application."""
    found = outline((EXAMPLES / "kubernetes.yaml").read_text())
    assert [found[path] for path in found if path.endswith("kind")] == ["Deployment", "Service"]
    assert {found[path] for path in found if path.endswith("metadata.name")} == {"app"}


def test_compose_keeps_the_conventions(compose: dict[str, str]) -> None:
    """No version; each service has a health check, an end and a restart; who depends waits for healthy ones."""
    assert "version" not in compose
    assert services(compose) == {"app", "postgres", "pgbouncer"}
    for name in services(compose):
        own = f"services.{name}"
        assert compose[f"{own}.healthcheck.test"].startswith("[CMD, ")
        assert {f"{own}.healthcheck.{each}" for each in ("start_period", "interval", "timeout", "retries")} <= {
            *compose
        }
        assert seconds(compose[f"{own}.stop_grace_period"]) >= 10
        assert compose[f"{own}.restart"] == "unless-stopped"
        for path, value in compose.items():
            if path.startswith(f"{own}.depends_on."):
                assert path.split(".")[-1] in services(compose)
                assert value.replace(", required: false", "") == HEALTHY
    assert compose["services.pgbouncer.profiles"] == "[pgbouncer]"
    assert "required: false" in compose["services.app.depends_on.pgbouncer"]  # its profile may be off
    text = (EXAMPLES / "compose.yaml").read_text()
    used = set(re.findall(r"source: ([\w.-]+)", text))
    assert used == {
        path.split(".", 1)[1].removesuffix(".content") for path in compose if re.match(r"configs\..*\.content", path)
    }
    assert "volumes.data" in compose
    assert compose["services.postgres.volumes.0"].startswith("data:")


def test_compose_runs_the_example(compose: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command, port and path are the example's, and gunicorn has its time before it is killed."""
    monkeypatch.setenv("WEB_CONCURRENCY", "2")  # it would set this itself, for all that comes after
    conf = runpy.run_path(str(EXAMPLES / "gunicorn.conf.py"))
    command = compose["services.app.command"].strip("[]").split(", ")
    assert command[:2] == ["gunicorn", "--config"]
    assert (EXAMPLES.parent / command[2]).is_file()
    assert seconds(compose["services.app.stop_grace_period"]) >= conf["graceful_timeout"] + 2
    port = compose["services.app.environment.BIND"].rpartition(":")[2]
    probe = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", compose["services.app.healthcheck.test"])
    assert probe is not None
    assert probe[1] == port
    assert compose["services.app.ports"].endswith(f':{port}"]')
    app = load("gunicorn_app").make_app("postgresql://localhost/app")
    assert probe[2] in {resource.canonical for resource in app.router.resources()}


def test_compose_knows_its_databases(compose: dict[str, str]) -> None:
    """Both URLs lead to a service of the file, as the user and to the database that it makes."""
    text = (EXAMPLES / "compose.yaml").read_text()
    behind = re.search(r"DATABASE_URL='([^']+)'", text)
    direct = re.search(r":-([^}]+)}", compose["services.app.environment.DATABASE_URL"])
    assert behind is not None
    assert direct is not None
    pool = ini(textwrap.dedent(compose["configs.pgbouncer.ini.content"]))
    for url, service, port in ((direct[1], "postgres", 5432), (behind[1], "pgbouncer", int(pool["listen_port"]))):
        config = poolscope.PoolScope(url).config
        assert [(host.host, host.port) for host in config.hosts] == [(service, port)]
        assert config.pgbouncer is (service == "pgbouncer")
        made = {key: compose[f"services.postgres.environment.POSTGRES_{key}"] for key in ("USER", "DB")}
        assert made == {"USER": config.params["user"], "DB": config.params["dbname"]}
    own = ini((EXAMPLES / "pgbouncer" / "pgbouncer.ini").read_text())
    places = {"listen_addr", "auth_file", "unix_socket_dir"}
    assert {key: value for key, value in pool.items() if key not in places} == {
        key: value for key, value in own.items() if key not in places
    }
