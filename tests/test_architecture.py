"""Who may know whom, read from the source."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import fastapi_maintenance

NAME = "fastapi_maintenance"
PACKAGE = Path(fastapi_maintenance.__file__).parent
TESTS = Path(__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LAYERS = [
    ["asgi", "state", "marks", "tasks", "forks", "negotiation", "backends.redis", "backends.redis.scripts"],
    ["backends.redis.urls"],
    ["backends.redis.clients", "backends.redis.reasons"],
    ["audit", "decision", "errors", "openapi", "page", "telemetry"],
    ["inflight"],
    ["backends.base", "backends.locks", "backends.redis.holds", "backends.redis.link"],
    ["backends.flock", "backends.slots", "backends.redis.replies"],
    ["backends.redis.workers"],
    ["backends.redis.fleet"],
    ["backends.env", "backends.file", "backends.memory", "backends.redis.backend"],
    ["backends"],
    ["settings", "holds"],
    ["exemptions", "snapshot"],
    ["refusal"],
    ["gate"],
    ["routing", "streams"],
    ["maintenance"],
    ["middleware", "functional", "lookup", "running", "testing"],
    ["cli"],
    ["__main__"],
]
RANK = {f"{NAME}.{module}": rank for rank, layer in enumerate(LAYERS) for module in layer} | {NAME: len(LAYERS)}
OWN = {f"{NAME}.cli": {"typer"}}
"""Optional packages that a module is for: it imports them at its top, and nobody imports it at theirs."""
OPTIONAL = {"trio", "redis", "typer", "jinja2", "opentelemetry", "httpx", "httpx2"}
FOREIGN = {"fastapi", "starlette", "pydantic", "pydantic_settings", "pydantic_core", "anyio"}
FRAMEWORK_KEY = "fastapi_middleware_astack"
_PRIVATE = re.compile(r"_[a-z]\w*")

each_module = pytest.mark.parametrize("module", MODULES)


@cache
def parsed(module):
    """Read a module of the package."""
    return ast.parse(MODULES[module].read_text())


def at_import(tree):
    """Give the nodes that run when the module is imported: all but the bodies of functions and type checking."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


def imported(nodes):
    """Give the dotted names that import statements name, the names they take from them as well."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree, known):
    """Give the modules of this package that are imported, anywhere in the tree."""
    for node in ast.walk(tree):
        whole, *taken = [*imported([node]), ""]
        if isinstance(node, ast.ImportFrom):
            # `from package import module` knows that module, not the package's face.
            yield from (name if name in known else whole for name in taken if name)
        else:
            yield from (whole, *taken)


def wrong_imports(module, tree, rank):
    """Give the imports that do not go down in the layers."""
    return [name for name in own_imports(tree, rank) if name in rank and rank[name] >= rank[module]]


def private_names(tree):
    """Give the private names that a module uses on others: attributes, their names in `getattr`, imported ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            yield from (argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant))
    yield from (part for name in imported(ast.walk(tree)) for part in name.split("."))


def defined_names(tree):
    """Give the names that a module defines: functions, classes, variables, attributes, parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@cache
def own_names():
    """Give the names that the package defines."""
    return {name for module in MODULES for name in defined_names(parsed(module))}


def foreign_private_names(tree, own):
    """Give the private names that are used and defined nowhere in the package; those of tuples are documented."""
    return {name for name in private_names(tree) if _PRIVATE.fullmatch(name)} - own - {"_replace"}


def strings(tree):
    """Give all string constants."""
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_each_module_has_its_layer():
    """Every module of the package stands in one layer."""
    assert set(MODULES) <= set(RANK)
    assert len(RANK) == sum(map(len, LAYERS)) + 1


@each_module
def test_imports_go_one_way(module):
    """A module imports only from layers before its own: no siblings, no cycles, and nothing imports the face."""
    assert wrong_imports(module, parsed(module), RANK) == []


@each_module
def test_imports_are_absolute(module):
    """Every import inside the package is written with the whole name."""
    assert [name for name in imported(ast.walk(parsed(module))) if name.startswith(".")] == []


@each_module
def test_nothing_optional_is_imported_with_the_package(module):
    """An optional package is imported inside the function that needs it, never at the top of a module."""
    names = set(imported(at_import(parsed(module))))
    assert {name.split(".")[0] for name in names}.isdisjoint(OPTIONAL - OWN.get(module, set()))
    assert names.isdisjoint(OWN)


@each_module
def test_only_known_packages_are_imported(module):
    """Beside the standard library and the package itself, only what it depends on, and trio where it runs, is used."""
    names = {name.split(".")[0] for name in imported(ast.walk(parsed(module)))}
    assert names <= FOREIGN | {NAME, "trio"} | OWN.get(module, set()) | sys.stdlib_module_names


@pytest.mark.parametrize("module", sorted(set(MODULES) - {f"{NAME}.routing"}))
def test_private_names_of_the_framework_are_read_in_one_place(module):
    """No module but `routing` uses a private name that the package does not define, but for that of `os.environ`."""
    allowed = {"_data"} if module == f"{NAME}.backends.env" else set()
    assert foreign_private_names(parsed(module), own_names()) == allowed


def test_routing_reads_four_private_names_at_most():
    """`routing` uses private names of the framework, and not more than four."""
    assert 1 <= len(foreign_private_names(parsed(f"{NAME}.routing"), own_names())) <= 4


def test_the_frameworks_exit_stack_is_known_in_one_place():
    """The key of FastAPI's exit stack is read by `maintenance` alone."""
    assert [module for module in MODULES if FRAMEWORK_KEY in strings(parsed(module))] == [f"{NAME}.maintenance"]


IMPORTED = """
import json, sys
import fastapi, pydantic_settings
before = set(sys.modules)
import fastapi_maintenance
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_the_package_imports_nothing_optional():
    """A fresh interpreter that imports the package gets nothing third-party that FastAPI's import did not bring."""
    run = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-W", "error", "-c", IMPORTED],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=PACKAGE.parent,
    )
    brought = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert NAME in brought
    assert brought.isdisjoint(OPTIONAL)
    assert brought <= FOREIGN | {NAME} | sys.stdlib_module_names


def test_what_few_need_is_imported_at_its_first_use():
    """The page, the backends with locks or a network, and what ends streams cost nobody an import who does without."""
    run = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", f"{IMPORTED}\nfrom {NAME}.backends import LocalFileBackend, RedisBackend"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=PACKAGE.parent,
    )
    late = {f"{NAME}.{module}" for module in ("page", "streams", "backends.file", "backends.locks", "backends.redis")}
    assert late.isdisjoint(json.loads(run.stdout))


def undescribed(source):
    """Give the tests of a file that have no docstring."""
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [node.name for node in functions if node.name.startswith("test_") and not ast.get_docstring(node)]


@pytest.mark.parametrize("path", sorted(TESTS.glob("test_*.py")), ids=lambda path: path.name)
def test_every_test_says_what_it_shows(path):
    """Each test function has a docstring that states the behaviour."""
    assert undescribed(path.read_text()) == []


# The checks find what they look for


RANKS = {"p": 2, "p.high": 1, "p.low": 0, "p.twin": 1}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import p.low", []),
        ("from p.low import thing", []),
        ("from p import low", []),
        ("import p.twin", ["p.twin"]),
        ("from p.twin import thing", ["p.twin"]),
        ("from p import twin", ["p.twin"]),
        ("from p import low, twin", ["p.twin"]),
        ("from p import low, thing", ["p"]),
        ("import p.low, p, os, p.twin", ["p", "p.twin"]),
        ("import p", ["p"]),
        ("from p import thing", ["p"]),
        ("def f():\n    from p import thing", ["p"]),
        ("import os\nfrom os import path", []),
    ],
)
def test_a_wrong_import_is_found(source, found):
    """An import of a sibling or of the face is found in each spelling, inside functions as well."""
    assert wrong_imports("p.high", ast.parse(source), RANKS) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import redis", True),
        ("from redis.lowlevel import x", True),
        ("if 1:\n    import redis", True),
        ("try:\n    import redis\nexcept ImportError: ...", True),
        ("class A:\n    import redis", True),
        ("def f():\n    import redis", False),
        ("async def f():\n    import redis", False),
    ],
)
def test_an_import_at_the_top_is_found(source, found):
    """An optional import is found wherever it runs on import, not inside functions."""
    assert ("redis" in {name.split(".")[0] for name in imported(at_import(ast.parse(source)))}) is found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x._theirs", {"_theirs"}),
        ("getattr(x, '_theirs', None)", {"_theirs"}),
        ("hasattr(x, '_theirs')", {"_theirs"}),
        ("from fastapi._theirs import x", {"_theirs"}),
        ("from fastapi import _theirs", {"_theirs"}),
        ("import fastapi._theirs", {"_theirs"}),
        ("self._ours = 1\nself._ours", set()),
        ("x._replace(a=1)", set()),
        ("x.__class__, x.public, getattr(x, 'public'), getattr(x, name)", set()),
    ],
)
def test_a_private_name_is_found(source, found):
    """A private name of somebody else is found as an attribute, in `getattr` and in imports."""
    assert foreign_private_names(ast.parse(source), {"_ours"}) == found


@pytest.mark.parametrize("source", ["def {}(): ...", "async def {}(): ...", "class A:\n    def {}(self): ..."])
def test_a_test_without_a_docstring_is_found(source):
    """A test function without a docstring is found, sync, async or in a class."""
    assert undescribed(source.format("test_it")) == ["test_it"]
    assert undescribed(source.format("helper")) == []
