"""What the environment and arguments configure, and the backends that URLs name."""

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from fastapi_maintenance import BackendError, Maintenance, MaintenanceSettings
from fastapi_maintenance.backends import EnvVarBackend, LocalFileBackend, MemoryBackend
from fastapi_maintenance.settings import PREFIX, backend_from_url, mode_variable, scope_prefix

DEFAULTS = {
    "backend": "env",
    "message": "Service temporarily unavailable due to maintenance",
    "retry_after": 60,
    "retry_after_jitter": 0,
    "status_code": 503,
    "exempt_paths": (),
    "exempt_ips": (),
    "exempt_docs": True,
    "bypass_secret": None,
    "bypass_header": "Maintenance-Bypass",
    "refresh_interval": 1.0,
    "event_streams": "refuse",
    "page_template": None,
    "on_backend_error": "open",
    "read_timeout": 1.0,
}
ROOT = Path(__file__).parents[1]
PASSWORD = "hunter2-pässword"  # noqa: S105 - what must never be shown
NETWORKS = (ip_network("10.0.0.0/8"), ip_network("::1"))


def variable(field):
    """Give the variable of a field."""
    return f"{PREFIX}{field.upper()}"


def test_the_defaults_are_those_of_the_contract():
    """With nothing set each field has its default, and there is no other field."""
    assert MaintenanceSettings().model_dump() == DEFAULTS


GOOD = [
    ("backend", "memory", "memory"),
    ("backend", "file:state/m.json", "file:state/m.json"),
    ("backend", "file:/var/lib/a b", "file:/var/lib/a b"),
    ("backend", "package.module:attribute.inner", "package.module:attribute.inner"),
    ("message", "Back\tat noon.\nSorry", "Back\tat noon.\nSorry"),
    ("message", "", ""),
    ("retry_after", "1", 1),
    ("retry_after", "86400", 86400),
    ("retry_after", "", None),
    ("retry_after", " ", None),
    ("retry_after", "none", None),
    ("retry_after", "None", None),
    ("retry_after_jitter", "0", 0),
    ("retry_after_jitter", "30", 30),
    ("status_code", "500", 500),
    ("exempt_paths", "/a", ("/a",)),
    ("exempt_paths", " /a , /b/*,, ", ("/a", "/b/*")),
    ("exempt_paths", '["/a", "/b,c"]', ("/a", "/b,c")),
    ("exempt_paths", " []", ()),
    ("exempt_paths", "", ()),
    ("exempt_paths", "/*", ("/*",)),
    ("exempt_ips", "10.0.0.0/8,::1", NETWORKS),
    ("exempt_ips", '["10.0.0.0/8", "::1/128"]', NETWORKS),
    ("exempt_ips", "", ()),
    ("exempt_docs", "false", False),
    ("exempt_docs", "0", False),
    ("bypass_secret", "s3cret", SecretStr("s3cret")),
    ("bypass_secret", PASSWORD, SecretStr(PASSWORD)),
    ("bypass_secret", "", None),
    ("bypass_header", "X-Let-Me-In", "X-Let-Me-In"),
    ("refresh_interval", "0.25", 0.25),
    ("event_streams", "refuse", "refuse"),
    ("event_streams", "retry", "retry"),
    ("page_template", "pages/closed.html", Path("pages/closed.html")),
    ("page_template", "/srv/a b.html", Path("/srv/a b.html")),
    ("on_backend_error", "closed", "closed"),
    ("read_timeout", "5", 5.0),
]


@pytest.mark.parametrize(("field", "text", "value"), GOOD)
def test_each_field_is_read_from_its_variable(monkeypatch, field, text, value):
    """Each field is read from the variable of its name; the others keep their defaults."""
    monkeypatch.setenv(variable(field), text)
    assert MaintenanceSettings().model_dump() == DEFAULTS | {field: value}


@pytest.mark.parametrize(("field", "text", "value"), GOOD)
def test_each_field_is_taken_as_an_argument(monkeypatch, field, text, value):
    """An argument, as text or as the value itself, goes before the variable, wrong or not."""
    monkeypatch.setenv(variable(field), "[")
    assert getattr(MaintenanceSettings(**{field: text}), field) == value
    assert getattr(MaintenanceSettings(**{field: value}), field) == value


def test_an_empty_secret_opens_nothing():
    """An empty secret, however it is given, is none."""
    assert MaintenanceSettings(bypass_secret=SecretStr("")).bypass_secret is None


BAD = [
    ("backend", "", "unknown backend: use env, memory, file:PATH, redis://HOST or module:attribute"),
    ("backend", "ENV", "unknown backend: use env, memory"),
    ("backend", "file:", "unknown backend"),
    ("backend", "module:", "unknown backend"),
    ("backend", ":attribute", "unknown backend"),
    ("backend", "a b:c", "unknown backend"),
    ("backend", "a:b:c", "unknown backend"),
    ("backend", f"redis//:{PASSWORD}@host", "unknown backend"),
    ("backend", f"mysql://user:{PASSWORD}@host/0", "unknown backend"),
    ("message", "bell\a", r"message has the control character '\x07' at 4"),
    ("message", "x" * 2049, "message has 2049 bytes, at most 2048"),
    ("message", "\udcff", "message has a lone surrogate"),
    ("retry_after", "0", "greater than or equal to 1"),
    ("retry_after", "-1", "greater than or equal to 1"),
    ("retry_after", "1.5", "valid integer"),
    (
        "retry_after",
        "soon",
        "valid integer, unable to parse string as an integer (give whole seconds, at least 1, or none",
    ),
    ("retry_after_jitter", "-1", "greater than or equal to 0"),
    ("retry_after_jitter", "0.5", "valid integer"),
    ("retry_after_jitter", "", "valid integer"),
    ("retry_after_jitter", "none", "valid integer"),
    ("status_code", "200", "greater than or equal to 400 (give a status from 400 to 599)"),
    ("status_code", "600", "less than or equal to 599"),
    ("status_code", "", "valid integer"),
    ("exempt_paths", "health", "'health' is no path: write /exact/path, or /path/* for it and all below"),
    ("exempt_paths", "/a,b", "'b' is no path"),
    ("exempt_paths", "/a*", "'/a*' is no path"),
    ("exempt_paths", "/*/a", "'/*/a' is no path"),
    ("exempt_paths", "/*/*", "'/*/*' is no path"),
    ("exempt_paths", '{"/a": 1}', "is no path"),
    ("exempt_paths", '["/a"', """; write JSON like ["a", "b"], or a, b"""),
    ("exempt_paths", "[/a]", """; write JSON like ["a", "b"], or a, b"""),
    ("exempt_paths", "[" * 100_000, "; write JSON like"),
    ("exempt_paths", '["/a", 1]', " (item 1): Input should be a valid string"),
    ("exempt_paths", '[["/a"]]', " (item 0): Input should be a valid string"),
    ("exempt_paths", "[null]", " (item 0): Input should be a valid string"),
    ("exempt_ips", "10.0.0.1/8", " (item 0): 10.0.0.1/8 has host bits set; write a network like 10.0.0.0/8, or one"),
    ("exempt_ips", "::1, localhost", " (item 1): 'localhost' does not appear to be an IPv4 or IPv6 network; write"),
    ("exempt_ips", "10.0.0.0/33", " (item 0): '10.0.0.0/33' does not appear"),
    ("exempt_ips", "[1, 2]", " (item 0): 1 is no network: write it as text; "),
    ("exempt_ips", "[true]", " (item 0): True is no network"),
    ("exempt_ips", '["::1"', "; write JSON like"),
    ("exempt_docs", "maybe", "valid boolean"),
    ("exempt_docs", "", "valid boolean"),
    ("bypass_secret", f"{PASSWORD}\udcff", "it is not valid UTF-8"),
    ("bypass_header", "", "'' is no header name (RFC 9110 section 5.1)"),
    ("bypass_header", "two words", "'two words' is no header name"),
    ("bypass_header", "a:b", "'a:b' is no header name"),
    ("bypass_header", "é", "'é' is no header name"),
    ("refresh_interval", "0", "greater than 0"),
    ("refresh_interval", "-1", "greater than 0"),
    ("refresh_interval", "inf", "finite number"),
    ("refresh_interval", "often", "valid number"),
    ("event_streams", "", "'refuse' or 'retry'"),
    ("event_streams", "Retry", "'refuse' or 'retry'"),
    ("on_backend_error", "maybe", "'open' or 'closed'"),
    ("read_timeout", "0", "greater than 0"),
    ("read_timeout", "nan", "finite number"),
]
bad = pytest.mark.parametrize(("field", "text", "says"), BAD, ids=[f"{row[0]}-{i}" for i, row in enumerate(BAD)])


@bad
def test_a_wrong_variable_is_an_error_that_names_it(monkeypatch, field, text, says):
    """A wrong value in the environment is a `ValueError` that begins with the variable and says what would be right."""
    monkeypatch.setenv(variable(field), text)
    with pytest.raises(ValueError, match=f"^{variable(field)}\\b") as caught:
        MaintenanceSettings()
    assert says in str(caught.value)
    assert PASSWORD not in str(caught.value)


@bad
def test_a_wrong_argument_is_an_error_that_names_it(field, text, says):
    """A wrong value in an argument is a `ValueError` that begins with the argument's name."""
    with pytest.raises(ValueError, match=f"^{field}\\b") as caught:
        MaintenanceSettings(**{field: text})
    assert says in str(caught.value)
    assert PASSWORD not in str(caught.value)


@bad
def test_a_wrong_variable_of_a_scope_is_an_error_that_names_it(monkeypatch, field, text, says):
    """A wrong value in a scope's own variable is a `ValueError` that begins with that variable."""
    monkeypatch.setenv(f"{PREFIX}BILLING_{field.upper()}", text)
    with pytest.raises(ValueError, match=f"^{PREFIX}BILLING_{field.upper()}\\b") as caught:
        MaintenanceSettings.for_scope("billing")
    assert says in str(caught.value)


@bad
def test_a_wrong_fallback_of_a_scope_names_the_plain_variable(monkeypatch, field, text, says):
    """A wrong value that a scope falls back to is named by the variable where it stands."""
    monkeypatch.setenv(variable(field), text)
    with pytest.raises(ValueError, match=f"^{variable(field)}\\b") as caught:
        MaintenanceSettings.for_scope("billing")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exempt_paths", 5),
        ("exempt_ips", [5]),
        ("bypass_secret", 5),
        ("message", None),
        ("backend", None),
        ("retry_after_jitter", None),
        ("event_streams", True),
        ("page_template", 5),
    ],
)
def test_an_argument_of_a_wrong_type_is_an_error(field, value):
    """An argument of another type is a `ValueError` that names it."""
    with pytest.raises(ValueError, match=f"^{field}\\b"):
        MaintenanceSettings(**{field: value})


def test_all_that_is_wrong_is_said_at_once(monkeypatch):
    """Several wrong values are in one error, each by the name under which it was written."""
    monkeypatch.setenv(variable("retry_after"), "soon")
    monkeypatch.setenv(variable("read_timeout"), "0")
    with pytest.raises(ValueError, match=f"^status_code: .*; {variable('read_timeout')}: ") as caught:
        MaintenanceSettings(status_code=1, retry_after=5)
    assert "RETRY_AFTER" not in str(caught.value)


@pytest.mark.parametrize("name", ["retry", "bypass_secrets", "_typo", "MODE", "page"])
def test_an_unknown_keyword_is_an_error(name):
    """A keyword that is no setting is a `TypeError` that lists the settings, and does not show its value."""
    with pytest.raises(TypeError, match=f"^unknown setting '{name}': use {', '.join(DEFAULTS)}$"):
        MaintenanceSettings(**{name: PASSWORD})


def test_other_variables_of_the_prefix_are_left_alone(monkeypatch):
    """A variable that is no setting, such as the mode's or a scope's, is not an error here."""
    monkeypatch.setenv(f"{PREFIX}MODE", "1")
    monkeypatch.setenv(f"{PREFIX}BILLING_MODE", "1")
    assert MaintenanceSettings().model_dump() == DEFAULTS


@pytest.mark.parametrize("field", DEFAULTS)
def test_settings_are_frozen(field):
    """No field can be changed afterwards."""
    settings = MaintenanceSettings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, field, None)
    assert settings.model_dump() == DEFAULTS


def test_a_dotenv_file_is_read_only_when_asked(monkeypatch, tmp_path):
    """A `.env` in the working directory is not read; with `_env_file` it is, and a wrong value names its variable."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"{variable('retry_after')}=7\nOTHER=1\n")
    assert MaintenanceSettings().retry_after == 60
    assert MaintenanceSettings.for_scope("billing").retry_after == 60
    assert MaintenanceSettings(_env_file=".env").retry_after == 7
    (tmp_path / ".env").write_text(f"{variable('retry_after')}=0\n")
    with pytest.raises(ValueError, match=f"^{variable('retry_after')}: "):
        MaintenanceSettings(_env_file=".env")


# Secrets


def test_a_secret_is_never_shown(monkeypatch):
    """The secret is in no representation of the settings and of what is made from them."""
    monkeypatch.setenv(variable("bypass_secret"), PASSWORD)
    settings = MaintenanceSettings()
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())]
    shown += [repr(Maintenance(settings)), repr(Maintenance())]
    assert not [text for text in shown if PASSWORD in text]
    assert settings.bypass_secret.get_secret_value() == PASSWORD


@pytest.mark.parametrize("url", [f"redis://:{PASSWORD}@host:6379/x", f"redis:{PASSWORD}", f"postgres://u:{PASSWORD}@"])
def test_a_password_in_a_wrong_url_is_never_shown(monkeypatch, caplog, url):
    """A malformed or unknown backend URL is an error that does not repeat it, nor do its causes and the log."""
    monkeypatch.setenv(variable("backend"), url)
    monkeypatch.setenv(variable("bypass_secret"), PASSWORD)
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match=r"unknown backend|malformed") as caught:
        Maintenance()
    assert PASSWORD not in f"{caught.value!r} {caught.value} {caught.value.__context__}"
    assert PASSWORD not in caplog.text


# Scopes


def test_a_scope_falls_back_field_by_field(monkeypatch):
    """Each field of a scope is read from its own variable, else from the plain one, else it has its default."""
    monkeypatch.setenv(variable("retry_after"), "5")
    monkeypatch.setenv(variable("message"), "plain")
    monkeypatch.setenv(f"{PREFIX}BILLING_MESSAGE", "billing")
    monkeypatch.setenv(f"{PREFIX}BILLING_EXEMPT_PATHS", "/a,/b")
    expected = DEFAULTS | {"retry_after": 5, "message": "billing", "exempt_paths": ("/a", "/b")}
    assert MaintenanceSettings.for_scope("billing").model_dump() == expected
    assert MaintenanceSettings.for_scope("other").model_dump() == DEFAULTS | {"retry_after": 5, "message": "plain"}
    assert MaintenanceSettings.for_scope("default").model_dump() == DEFAULTS | {"retry_after": 5, "message": "plain"}


@pytest.mark.parametrize(("field", "text", "value"), [row for row in GOOD if not row[1].startswith("file:")])
def test_each_field_can_be_a_scopes_own(monkeypatch, field, text, value):
    """Each field is read from the scope's variable, even where the plain one is wrong."""
    monkeypatch.setenv(variable(field), "[")
    monkeypatch.setenv(f"{PREFIX}BILLING_{field.upper()}", text)
    assert getattr(MaintenanceSettings.for_scope("billing"), field) == value


@pytest.mark.parametrize(
    ("scope", "prefix"),
    [
        ("default", PREFIX),
        ("billing", f"{PREFIX}BILLING_"),
        ("eu_west_1", f"{PREFIX}EU_WEST_1_"),
    ],
)
def test_a_scope_has_a_prefix_of_its_own(scope, prefix):
    """A scope's variables have its name in upper case after the prefix."""
    assert scope_prefix(scope) == prefix
    assert mode_variable(scope) == f"{prefix}MODE"


@pytest.mark.parametrize(
    "scope", ["", " ", "1a", "-a", "a-b", "Billing", "_a", "a b", "a/b", "../a", "a.b", "é", "a\n", None, 5, b"a"]
)
def test_a_wrong_scope_name_is_an_error(scope):
    """A scope that is no plain name is a `ValueError` that says how one is written."""
    with pytest.raises(ValueError, match=r"is no scope name: a small letter, then small letters, digits and _$"):
        MaintenanceSettings.for_scope(scope)
    with pytest.raises(ValueError, match="is no scope name"):
        Maintenance(scope=scope)


@pytest.mark.anyio
async def test_the_mode_of_a_scope_never_falls_back(monkeypatch):
    """The plain mode does not close a scope; its own one closes it and nothing else."""
    monkeypatch.setenv(f"{PREFIX}MODE", "1")
    billing, plain = Maintenance(scope="billing"), Maintenance()
    assert [(await m.status()).active for m in (billing, plain)] == [False, True]
    monkeypatch.setenv(f"{PREFIX}MODE", "0")
    monkeypatch.setenv(f"{PREFIX}BILLING_MODE", "read_only")
    assert [(await m.status()).mode for m in (billing, plain)] == ["read_only", None]


@pytest.mark.parametrize("scope", ["default", "billing"])
@pytest.mark.parametrize("word", ["maybe", "2", "read-only"])
def test_a_wrong_mode_stops_the_start(monkeypatch, scope, word):
    """A wrong mode in the environment is a `ValueError` at construction that names the variable and the right words."""
    monkeypatch.setenv(mode_variable(scope), word)
    says = rf"{mode_variable(scope)}: '{word}' is not a maintenance mode: write 1 \(on\), 0 \(off\) or read_only$"
    for _ in range(2):
        with pytest.raises(ValueError, match=says):
            Maintenance(scope=scope)


def test_a_mode_that_became_wrong_stops_the_next_object(monkeypatch):
    """The environment is checked by each object made from it, though they share one backend."""
    Maintenance()
    monkeypatch.setenv(f"{PREFIX}MODE", "maybe")
    with pytest.raises(ValueError, match=f"{PREFIX}MODE: 'maybe'"):
        Maintenance()


def test_the_file_of_a_scope_is_its_own(monkeypatch, tmp_path):
    """A file that a scope falls back to gets the scope's name; one that is named for the scope is taken as it is."""
    monkeypatch.setenv(variable("backend"), f"file:{tmp_path}/m")
    monkeypatch.setenv(f"{PREFIX}SHOP_BACKEND", f"file:{tmp_path}/shop.json")
    paths = [Maintenance(scope=scope).backend.file_path for scope in ("default", "billing", "shop")]
    assert paths == [f"{tmp_path}/{name}" for name in ("m", "m.billing", "shop.json")]


@pytest.mark.parametrize("name", ["m", "maintenance.state"])
def test_a_file_in_the_current_directory_is_no_object(monkeypatch, tmp_path, name):
    """`file:NAME` is a file, for a scope that falls back to it, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable("backend"), f"file:{name}")
    assert Maintenance(scope="billing").backend.file_path == f"{tmp_path}/{name}.billing"


def test_an_object_as_a_fallback_is_an_error(monkeypatch):
    """A scope cannot share the one object that the plain variable names; the error tells which variable to set."""
    monkeypatch.setenv(variable("backend"), "pkg.mod:store")
    with pytest.raises(
        ValueError,
        match=f"^{PREFIX}BACKEND=pkg.mod:store names one object, which scope 'billing' cannot share: "
        f"set {PREFIX}BILLING_BACKEND as well$",
    ):
        MaintenanceSettings.for_scope("billing")
    monkeypatch.setenv(f"{PREFIX}BILLING_BACKEND", "pkg.mod:store")
    assert MaintenanceSettings.for_scope("billing").backend == "pkg.mod:store"


# Backends from URLs


@pytest.mark.parametrize(
    ("url", "kind"), [("env", EnvVarBackend), ("memory", MemoryBackend), ("file:m.json", LocalFileBackend)]
)
def test_a_url_and_a_scope_name_one_backend(monkeypatch, tmp_path, url, kind):
    """The same URL and scope give the same backend object each time, another scope another one."""
    monkeypatch.chdir(tmp_path)
    backend = backend_from_url(url, "default")
    assert type(backend) is kind
    assert backend_from_url(url, "default") is backend
    assert backend_from_url(url, "billing") is not backend


def test_a_file_is_known_by_its_whole_path(monkeypatch, tmp_path):
    """Relative and absolute spellings of one file give one backend."""
    monkeypatch.chdir(tmp_path)
    spellings = ["m", "./m", f"{tmp_path}/m", f"{tmp_path}/../{tmp_path.name}/m"]
    assert {backend_from_url(f"file:{path}", "default").file_path for path in spellings} == {f"{tmp_path}/m"}
    assert len({id(backend_from_url(f"file:{path}", "default")) for path in spellings}) == 1


def test_objects_from_one_environment_share_a_backend(monkeypatch):
    """Two objects made from the same environment share the backend; one with a backend of its own stands apart."""
    monkeypatch.setenv(variable("backend"), "memory")
    own = MemoryBackend()
    assert Maintenance().backend is Maintenance().backend
    assert Maintenance(backend=own).backend is own
    assert Maintenance().backend not in (own, Maintenance(scope="billing").backend)


def test_threads_share_a_backend():
    """Many threads that ask at once get one object."""
    found, start = [], threading.Barrier(8)
    threads = [
        threading.Thread(target=lambda: (start.wait(), found.append(backend_from_url("memory", "default"))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_file_in_a_missing_directory_is_an_error(tmp_path):
    """A file whose directory does not exist is a `BackendError` that names the directory."""
    with pytest.raises(BackendError, match=r"the directory .*gone does not exist"):
        backend_from_url(f"file:{tmp_path}/gone/m", "default")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (f"/{'a' * 300}/m", "cannot be seen: File name too long .user "),
        (f"/{'a' * 300}", "File name too long; name another path$"),
        *((path, "no file can have this name") for path in ("/nul\0/m", "/nul\0", "/\ud800/m", "/\ud800")),
        (b"/no\xff/m", r"the directory /no\\udcff does not exist"),
    ],
    ids=["long directory", "long", "NUL in the directory", "NUL", "surrogate in the directory", "surrogate", "no text"],
)
def test_a_path_that_no_file_can_have_is_an_error(path, reason):
    """A path that the system cannot look at, or that has no name it knows, is a `BackendError` that can be printed."""
    with pytest.raises(BackendError, match=reason) as caught:
        LocalFileBackend(path)
    assert str(caught.value).encode()


@pytest.mark.parametrize("written", ["argument", "variable", "variable of the scope"])
@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("backend", "file:/no/such/directory/m", BackendError, "the directory /no/such/directory does not exist"),
        ("backend", "redis://h/0?lease=x", ValueError, "lease of the Redis backend"),
        ("backend", "no_such_module:x", ValueError, "cannot be imported"),
        ("backend", "os:getcwd", TypeError, "is no backend"),
        ("page_template", "/no/such/page.html", ValueError, "page template /no/such/page.html cannot be read"),
    ],
    ids=["directory", "lease", "module", "object", "template"],
)
def test_what_cannot_be_used_is_named_as_it_was_written(monkeypatch, written, field, value, error, text):
    """What is well formed but cannot be used is an error that names the argument or the variable it comes from."""
    scope = "billing" if written == "variable of the scope" else "default"
    settings, name = None, f"{scope_prefix(scope)}{field.upper()}"
    if written == "argument":
        settings, name = MaintenanceSettings(**{field: value}), field
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=rf"{text}.* \(setting {name}\)$"):
        Maintenance(settings, scope=scope)


@pytest.mark.parametrize(("field", "value"), [("backend", "file:/no/such/m"), ("page_template", "/no/such/page.html")])
def test_what_a_scope_falls_back_to_is_named_plainly(monkeypatch, field, value):
    """Where a scope has no variable of its own, the error names the plain one."""
    monkeypatch.setenv(variable(field), value)
    with pytest.raises((BackendError, ValueError), match=rf" \(setting {variable(field)}\)$"):
        Maintenance(scope="billing")


@pytest.fixture
def module(monkeypatch, tmp_path):
    """Make a module to import backends from."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shelf.py").write_text(
        "from fastapi_maintenance.backends import MemoryBackend\n"
        "store = MemoryBackend()\n"
        "class Room:\n    store = MemoryBackend()\n"
        "def function(): ...\n"
        "class Needy(MemoryBackend):\n    def __init__(self, url): ...\n"
        "class Lost(MemoryBackend):\n    def __init__(self): raise ConnectionError('no route')\n"
    )
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "failing.py").write_text(
        "from fastapi_maintenance import BackendError\n"
        "from fastapi_maintenance.backends import LocalFileBackend\n"
        "class Special(BackendError):\n    def __init__(self): Exception.__init__(self, 'in its own words')\n"
        "class Own(LocalFileBackend):\n    def __init__(self): raise Special\n"
        "class Made(LocalFileBackend):\n    def __init__(self): super().__init__('/no/such/directory/m')\n"
        "def __getattr__(name): return LocalFileBackend('/no/such/directory/m')\n"
    )
    (tmp_path / "unset.py").write_text("import os\nx = os.environ['NO_SUCH_VARIABLE']\n")
    (tmp_path / "ends.py").write_text("raise SystemExit(1)\n")
    yield "shelf"
    for name in ("shelf", "broken", "failing", "unset", "ends"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", ["store", "Room.store"])
def test_an_object_can_be_named(module, path):
    """`module:attribute`, also with dots, is the object that stands there, the same for each scope that names it."""
    backend = backend_from_url(f"{module}:{path}", "default")
    assert isinstance(backend, MemoryBackend)
    assert backend_from_url(f"{module}:{path}", "billing") is backend


def test_a_class_can_be_named(module):
    """`module:Class` is an object of it, made once for each scope."""
    backend = backend_from_url(f"{module}:MemoryBackend", "default")
    assert type(backend) is MemoryBackend
    assert backend_from_url(f"{module}:MemoryBackend", "default") is backend
    assert backend_from_url(f"{module}:MemoryBackend", "billing") is not backend


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("shelf.inner:x", "No module named 'shelf.inner'"),
        ("shelf:missing", "has no attribute 'missing'"),
        ("shelf:store.missing", "has no attribute 'missing'"),
        ("broken:x", "No module named 'no_such_module_at_all'"),
        ("unset:x", "KeyError: 'NO_SUCH_VARIABLE'"),
        ("ends:x", "SystemExit: 1"),
    ],
)
def test_an_object_that_cannot_be_imported_is_an_error(module, monkeypatch, url, reason):
    """A module or an attribute that is not there, or cannot be had, is a `ValueError` that keeps the cause."""
    monkeypatch.setenv(variable("backend"), url)
    with pytest.raises(ValueError, match=f"^backend {url} cannot be imported: .*{reason}") as caught:
        Maintenance()
    assert isinstance(caught.value.__cause__, ImportError | AttributeError | KeyError | SystemExit)
    assert module == "shelf"


@pytest.mark.parametrize(("kind", "reason"), [("Needy", ".*'url'"), ("Lost", "ConnectionError: no route")])
def test_a_class_that_cannot_be_made_is_an_error(module, kind, reason):
    """A class that cannot be called, or not without arguments, is a `ValueError` that asks for an object of it."""
    with pytest.raises(
        ValueError, match=f"^backend shelf:{kind} cannot be made: {reason}; name an object of it instead$"
    ):
        backend_from_url(f"{module}:{kind}", "default")


@pytest.mark.parametrize("attribute", ["Made", "while_it_is_imported"])
def test_a_backend_that_says_why_it_cannot_be_made_is_believed(module, monkeypatch, attribute):
    """A `BackendError` of an own backend comes as it is, with the variable that names it."""
    monkeypatch.setenv(variable("backend"), f"failing:{attribute}")
    with pytest.raises(BackendError, match=r"^state file .* does not exist.*\(setting FASTAPI_MAINTENANCE_BACKEND\)$"):
        Maintenance()
    assert module == "shelf"


def test_a_kind_of_backend_error_that_is_not_ours_stays_as_it_is(module, monkeypatch):
    """An own backend may raise a `BackendError` of its own kind, made in its own way."""
    monkeypatch.setenv(variable("backend"), "failing:Own")
    with pytest.raises(BackendError, match=r"^in its own words$") as caught:
        Maintenance()
    assert (type(caught.value).__name__, module) == ("Special", "shelf")


def test_how_settings_were_named_is_no_part_of_them(monkeypatch):
    """Settings of the same values are equal, wherever each value came from."""
    plain = MaintenanceSettings()
    monkeypatch.setenv(variable("message"), "x")
    assert MaintenanceSettings() == MaintenanceSettings(message="x") != plain
    assert plain == MaintenanceSettings(**plain.model_dump())
    assert len({MaintenanceSettings(), MaintenanceSettings(message="x")}) == 1


def test_an_object_that_is_no_backend_is_an_error(module):
    """An attribute that is no backend is a `TypeError` that says what one is."""
    with pytest.raises(TypeError, match=r"^function is no backend: give "):
        Maintenance(MaintenanceSettings(backend=f"{module}:function"))


def test_settings_can_be_copied_and_pickled():
    """Settings go to another process as they are."""
    settings = MaintenanceSettings(retry_after=5, exempt_ips="::1", bypass_secret="s")  # noqa: S106 - made up
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - our own
    assert json.loads(settings.model_dump_json())["exempt_ips"] == ["::1/128"]


@pytest.mark.anyio
async def test_given_settings_keep_the_file_of_a_scope_apart(tmp_path):
    """Objects of several scopes with the same settings have a file each, `PATH` and `PATH.scope`."""
    settings = MaintenanceSettings(backend=f"file:{tmp_path}/m")
    default, billing = Maintenance(settings), Maintenance(settings, scope="billing")
    await billing.enable()
    assert billing.backend.file_path == f"{tmp_path}/m.billing"
    assert [(await it.status()).active for it in (default, billing)] == [False, True]
    assert settings.backend == f"file:{tmp_path}/m"


@pytest.mark.anyio
async def test_given_settings_and_the_environment_name_the_same_file(monkeypatch, tmp_path):
    """A scope has one file, whether its settings come from the environment or are given."""
    monkeypatch.setenv(variable("backend"), f"file:{tmp_path}/m")
    read, given = Maintenance(scope="billing"), Maintenance(MaintenanceSettings(), scope="billing")
    assert read.backend is given.backend


SELF_MADE = """
from fastapi_maintenance import Maintenance, get_maintenance
from fastapi_maintenance.backends import MemoryBackend
store = MemoryBackend()
maintenance = {made}
"""


@pytest.mark.parametrize("made", ["Maintenance()", "get_maintenance()"])
@pytest.mark.parametrize("first", ["from own import maintenance", "maintenance = get_maintenance()"])
def test_a_module_that_makes_an_object_itself_can_name_the_backend(made, first, tmp_path):
    """A module that makes an object from the environment that names this module does not wait for itself."""
    (tmp_path / "own.py").write_text(SELF_MADE.format(made=made))
    program = (
        f"from fastapi_maintenance import get_maintenance\n{first}\nimport own\nprint(maintenance.backend is own.store)"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", variable("backend"): "own:store"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("url", ["package:inner", "package:inner.deep"])
def test_a_module_is_no_backend(monkeypatch, tmp_path, url):
    """A URL that names a module instead of an object in it is a `ValueError` that says so."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import logging as inner\ninner.deep = inner\n")
    monkeypatch.setattr(logging, "deep", None, raising=False)
    with pytest.raises(ValueError, match=f"^backend {url} is a module; name an object in it .setting backend.$"):
        Maintenance(MaintenanceSettings(backend=url))
    sys.modules.pop("package")


def test_a_backend_that_cannot_be_imported_tells_what_there_is():
    """The error tells which backends there are."""
    with pytest.raises(ValueError, match=r"use env, memory, file:PATH"):
        backend_from_url("no_such_module:x", "default")


def test_an_empty_page_template_means_none(monkeypatch):
    """A template that a compose file leaves empty is the built-in page."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_PAGE_TEMPLATE", "")
    assert MaintenanceSettings().page_template is None


def test_the_name_of_the_gate_is_no_scope():
    """A scope whose file would be the gate of another one is refused."""
    with pytest.raises(ValueError, match="'gate' is no scope name"):
        MaintenanceSettings.for_scope("gate")


def test_the_settings_of_a_scope_can_be_given_to_it(monkeypatch, tmp_path):
    """Settings that were read for a scope keep its state where the scope itself would."""
    monkeypatch.setenv(f"{PREFIX}BACKEND", f"file:{tmp_path / 'state'}")
    settings = MaintenanceSettings.for_scope("billing")
    assert Maintenance(settings, scope="billing").backend is Maintenance(scope="billing").backend
