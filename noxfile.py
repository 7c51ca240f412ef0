"""Everything that is checked: `nox` runs it all, `nox -l` lists it. uv is used when it is installed."""

import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PYTHONS = [c.rsplit(" ")[-1] for c in PROJECT["classifiers"] if c.startswith("Programming Language :: Python :: 3.")]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
NEWEST = next((python for python in reversed(PYTHONS) if shutil.which(f"python{python}")), HERE)

nox.options.sessions = [
    # A Python between the two has nothing that neither of them has; `nox -s tests` runs them all.
    *("lint", "typing", *sorted({f"tests-{HERE}", f"tests-{NEWEST}"}), "fastapi", "lowest"),
    *("browser", "budgets", "build"),
]

FASTAPI = ["0.136.3", "0.137.0", "0.137.2", "0.139.0", "0.145.0"]
"""The releases that changed routing; `lowest` has 0.118, `tests` the newest."""

ASKS_ROUTING = [f"tests/test_{name}.py" for name in ("matrix", "routing", "refusal", "openapi")]
"""The tests that a release which changed routing may break; `tests` and `lowest` run the others on both ends."""

REAL_SERVERS = (
    *("crashes", "failing_stores", "state_machine"),
    *("redis_answers", "redis_backend", "redis_fleet", "redis_topologies"),
    *("servers", "servers_holds", "servers_redis", "servers_run", "servers_streams"),
)
WITHOUT_REAL_SERVERS = [
    *(f"--ignore=tests/test_{name}.py" for name in REAL_SERVERS),
    *(f"--ignore=tests/drain/test_{name}.py" for name in ("campaigns", "faults", "fleet", "machine")),
]
"""What takes minutes runs once: real servers, killed processes, leases that end, the state machine."""

LONG_TABLES = ("again", "contract", "forms", "openapi", "redis_contract")
WITHOUT_LONG_TABLES = [f"--ignore=tests/test_{name}.py" for name in LONG_TABLES]
"""What asks little of Python, and of the release of a dependency; `tests` has it."""

PYTEST = ("pytest", "-q", "-n", "auto", "--dist", "worksteal")
"""On all cores."""

ONE_LOOP = ("-k", "not trio")
"""Python and FastAPI do not ask which event loop it is; `tests` tries both on the Python that runs nox."""

LOWEST = [
    requirement.replace(">=", "==")
    for requirement in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["redis"])
]


def _install(session: nox.Session, *more: str, extras: str = "all") -> None:
    groups = nox.project.dependency_groups(PYPROJECT, "tests")
    session.install("-e", f".[{extras}]", *groups, *more)
    # A process that has to compile what it imports takes twice as long to start, and there are hundreds.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, as linter and as formatter."""
    session.install("ruff>=0.14")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Run mypy and pyright, both strict, over the package, the examples and the type tests."""
    groups = nox.project.dependency_groups(PYPROJECT, "typing")
    session.install("-e", ".[all]", *groups, "pyright[nodejs]")
    session.run("mypy")
    session.run("pyright")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on the newest dependencies; all, with branch coverage and as a newcomer, on the Python at hand."""
    _install(session)
    if session.posargs:
        session.run(*PYTEST, *session.posargs)
    elif session.python != HERE:
        session.run(*PYTEST, *ONE_LOOP, *WITHOUT_REAL_SERVERS, *WITHOUT_LONG_TABLES)
    else:
        session.env["README_AS_A_NEWCOMER"] = "1"
        # Much of it waits, for leases and servers, so one more has a turn.
        more = ("-n", str((os.cpu_count() or 1) + 1))
        session.run(*PYTEST, *more, "--cov", "--cov-report=term-missing:skip-covered")


@nox.session(python=HERE)
@nox.parametrize("version", FASTAPI)
def fastapi(session: nox.Session, version: str) -> None:
    """Run the tests that ask much of routing on the releases that changed it."""
    _install(session, f"fastapi=={version}")
    # What other tools make of the description takes long, and asks nothing of routing.
    session.run(*PYTEST, *(session.posargs or ["-k", "not (trio or generated_client or undescribed)", *ASKS_ROUTING]))


@nox.session(python=HERE)
def lowest(session: nox.Session) -> None:
    """Run the tests on the lowest direct dependencies, without the command: other tests' tools want an older typer."""
    _install(session, *LOWEST, extras="redis")
    # redis-py changes with what is behind a URL.
    without = [option for option in WITHOUT_REAL_SERVERS if "topologies" not in option]
    without += [*WITHOUT_LONG_TABLES, "--ignore=tests/test_cli.py"]
    session.run(*PYTEST, *(session.posargs or [*ONE_LOOP, *without]))


@nox.session(python=HERE)
def browser(session: nox.Session) -> None:
    """Look at the page in the system's Chromium, headless; screenshots go to the session's `tmp`."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.skip("Chromium is not installed (Debian: apt-get install chromium)")
    groups = nox.project.dependency_groups(PYPROJECT, "browser")
    session.install("-e", ".[all]", *groups)
    folder = Path(session.create_tmp()).absolute()
    env = {"PAGE_SCREENSHOTS": str(folder)}
    if shutil.which("npm"):
        session.run("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "axe-core@4", external=True)
        env["AXE_CORE"] = str(folder / "node_modules" / "axe-core" / "axe.min.js")
    session.run("pytest", "-q", "tests/browser", *session.posargs, env=env)


@nox.session(python=HERE)
def bench(session: nox.Session) -> None:
    """Measure what the gates cost beside the bare application and other packages."""
    _bench(session, "bench", *session.posargs)


@nox.session(python=HERE)
def budgets(session: nox.Session) -> None:
    """Count what the gates cost, and compare it with the baseline."""
    _bench(session, "tests", "--quick")


def _bench(session: nox.Session, group: str, *arguments: str) -> None:
    groups = nox.project.dependency_groups(PYPROJECT, group)
    session.install("-e", ".[all]", *groups)
    folder = Path(session.create_tmp()).absolute()
    session.run("python", "tests/bench", "--out", str(folder), "--envs", str(folder / "peers"), *arguments)


@nox.session(python=HERE)
def drain(session: nox.Session) -> None:
    """Prove at length that nothing runs in a drained window: every server, a thousand windows, faults, controls."""
    _install(session)
    env = {"DRAIN_LONG": "1", "DRAIN_EXAMPLES": "1000"}
    session.run("pytest", "-q", "-s", *(session.posargs or ["tests/drain"]), env=env)


@nox.session(python=HERE)
def redis_scale(session: nox.Session) -> None:
    """Measure how large a fleet may be, and what a request costs while Redis is dead, with real redis-servers."""
    _install(session)
    session.run("python", "-m", "tests.bench.redis_scale")


@nox.session(python=HERE)
def build(session: nox.Session) -> None:
    """Build the package, look at it, and run the examples' tests against the wheel, away from the source tree."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.install("build", "twine")
    session.run("python", "-m", "build", "--outdir", "dist", str(ROOT))
    session.run("twine", "check", "--strict", *map(str, (ROOT / "dist").glob("*")))
    groups = nox.project.dependency_groups(PYPROJECT, "tests")
    session.install(*map(str, (ROOT / "dist").glob("*.whl")), *groups)
    session.run("python", "-I", "-c", "import fastapi_maintenance as m; print(m.__version__, m.__file__)")
    with tempfile.TemporaryDirectory() as away:
        for folder in ("examples", "tests"):
            shutil.copytree(ROOT / folder, Path(away) / folder)
        session.chdir(away)
        session.run("pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "tests/test_examples.py")
