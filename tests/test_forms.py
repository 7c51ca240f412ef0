"""The forms of a refusal: JSON, problem details, a page, plain text; and the figure in `Retry-After`."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.middleware.cors import CORSMiddleware

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, MaintenanceSettings, MaintenanceState
from fastapi_maintenance.backends import LocalFileBackend, MemoryBackend
from fastapi_maintenance.refusal import _FORMS
from fastapi_maintenance.state import Switch

JSON, PROBLEM, HTML, TEXT = _FORMS
MESSAGE = "Back soon, <b>we promise</b>"
GATES = ("guard", "route class", "middleware")
ANSWERS = {404: b'{"detail":"Not Found"}', 405: b'{"detail":"Method Not Allowed"}'}

every_gate = pytest.mark.parametrize("gate", GATES)
every_json = pytest.mark.parametrize("form", [JSON, PROBLEM])
every_form = pytest.mark.parametrize("form", _FORMS)


class Unchecked:
    """A user's store with a message that nobody checked."""

    def __init__(self, message):
        self.message = message

    async def read_state(self):
        switch = Switch(since=datetime.now(UTC)).model_copy(update={"message": self.message})
        return MaintenanceState(switch=switch)


def made(state=None, /, **configured):
    """Give an object that is closed with `state`."""
    maintenance = Maintenance(MaintenanceSettings(**configured), backend=MemoryBackend())
    anyio.run(partial(maintenance.enable, **({"message": MESSAGE} if state is None else state)))
    return maintenance


def behind(gate, maintenance, *, cors=False):
    """Give an app with `/x` and `/only-get`, behind one gate and, if wanted, CORS."""
    app = FastAPI(dependencies=[Depends(maintenance.guard)] if gate == "guard" else None)
    router = APIRouter(route_class=maintenance.route_class) if gate == "route class" else APIRouter()
    router.add_api_route("/x", lambda: "open", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
    router.add_api_route("/only-get", lambda: "open")
    app.include_router(router)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=["https://friend.example"], allow_methods=["GET", "POST"])
    if gate == "middleware":
        app.add_middleware(MaintenanceModeMiddleware, maintenance=maintenance)
    return app


def ask(app, accept="*/*", method="GET", **headers):
    """Send one request."""
    return TestClient(app).request(method, "/x", headers={"Accept": accept, **headers})


def well_formed(headers, body, message):
    """Tell whether a refusal is whole: what it must carry, and a body of the form that it says."""
    form = headers["content-type"].partition(";")[0]
    text = body.decode("utf-8", "strict")
    assert form in _FORMS
    assert headers["cache-control"] == "no-store"
    assert headers["maintenance"] == "full"
    assert headers["retry-after"] == "60"
    assert "Accept" in headers["vary"]
    if form in {JSON, PROBLEM}:
        return json.loads(text)["detail"] == message
    return text.startswith(message) if form == TEXT else text.endswith("</html>\n")


# Which form


@every_gate
@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", JSON),
        ("", JSON),
        ("application/json", JSON),
        ("application/xml", JSON),
        ("image/png, text/html;q=0", JSON),
        ("application/problem+json", PROBLEM),
        ("application/problem+json, application/json", JSON),
        ("application/problem+json, application/json;q=0.9", PROBLEM),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("text/plain", TEXT),
        ("text/html;q=0.2, text/plain;q=0.3", TEXT),
    ],
)
def test_form_by_accept(gate, accept, form):
    """The form is what `Accept` prefers, JSON by default, under each gate with the same status and headers."""
    response = ask(behind(gate, made()), accept)
    assert response.status_code == 503
    assert response.headers["Content-Type"].partition(";")[0] == form
    assert response.headers["Vary"] == "Accept"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Maintenance"] == "full"
    assert response.headers["Retry-After"] == "60"


@every_gate
def test_accept_in_several_lines(gate):
    """`Accept` that comes in several header lines is one list."""
    headers = [("Accept", "image/png"), ("Accept", "text/plain")]
    response = TestClient(behind(gate, made())).get("/x", headers=headers)
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


@every_gate
def test_both_json_forms_have_the_same_members(gate):
    """Problem details and plain JSON differ in the media type alone; `applied` is there where no code has run."""
    end = datetime.now(UTC) + timedelta(days=2)
    app = behind(gate, made({"message": MESSAGE, "until": end, "mode": "read_only"}))
    plain, problem = (ask(app, form, "POST") for form in (JSON, PROBLEM))
    members = plain.json()
    # The two may be asked in different seconds.
    assert problem.json() | {"retry_after": 0} == members | {"retry_after": 0}
    assert int(plain.headers["Retry-After"]) == members.pop("retry_after")
    assert datetime.fromisoformat(members.pop("until")) == end
    assert members.pop("applied", None) is (None if gate == "guard" else False)
    assert members == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": MESSAGE,
        "mode": "read_only",
    }


@every_gate
@every_form
def test_head_is_a_get_without_its_body(gate, form):
    """HEAD has the status and the headers of GET in each form, its length as well, and no body."""
    app = behind(gate, made())
    head, get = ask(app, form, "HEAD"), ask(app, form)
    assert (head.status_code, head.content) == (503, b"")
    assert get.content
    assert head.headers == get.headers


@every_gate
def test_page(gate):
    """A browser gets the page, its message as text, with a policy that allows only what is in it."""
    response = ask(behind(gate, made()), HTML)
    assert response.text.startswith("<!DOCTYPE html>")
    assert "Back soon, &lt;b&gt;we promise&lt;/b&gt;" in response.text
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")


@pytest.mark.parametrize("form", [JSON, PROBLEM, TEXT])
def test_other_forms_have_no_policy(form):
    """Only the page has a `Content-Security-Policy`."""
    assert "Content-Security-Policy" not in ask(behind("guard", made()), form).headers


@every_gate
def test_own_template(gate, tmp_path):
    """`page_template` makes the page, values escaped, and no policy of ours forbids what the user wrote."""
    template = tmp_path / "own.html"
    template.write_text("<h1>$title</h1><p style='color: red'>$message ($retry_after)</p>")
    response = ask(behind(gate, made(page_template=template)), HTML)
    assert response.text == (
        "<h1>Down for maintenance</h1><p style='color: red'>Back soon, &lt;b&gt;we promise&lt;/b&gt; (60)</p>"
    )
    assert "Content-Security-Policy" not in response.headers


@pytest.mark.parametrize("text", ["<p>$mesage</p>", "costs 5$", "<!-- if until -->", None])
def test_wrong_template_stops_the_start(text, monkeypatch, tmp_path):
    """A template that is missing or wrong is an error when the object is made, and names the file."""
    template = tmp_path / "own.html"
    if text is not None:
        template.write_text(text)
    monkeypatch.setenv("FASTAPI_MAINTENANCE_PAGE_TEMPLATE", str(template))
    with pytest.raises(ValueError, match=r"own\.html"):
        Maintenance()


@every_gate
@pytest.mark.parametrize(
    ("state", "configured", "lines"),
    [
        ({"message": "Back\nsoon"}, {}, ["Back", "soon", "Try again in 60 s"]),
        ({}, {"retry_after": None, "message": "Closed"}, ["Closed"]),
    ],
)
def test_plain_text(gate, state, configured, lines):
    """Plain text is the message and when to come back, where that is known."""
    response = ask(behind(gate, made(state, **configured)), TEXT)
    assert response.text == "".join(f"{line}\n" for line in lines)
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_plain_text_tells_the_end():
    """Plain text tells the expected end in UTC."""
    end = datetime(2999, 12, 31, 22, 30, tzinfo=UTC)
    response = ask(behind("guard", made({"message": "Closed", "until": end})), TEXT)
    retry_after = response.headers["Retry-After"]
    assert response.text == f"Closed\nExpected end: 2999-12-31 22:30 UTC\nTry again in {retry_after} s\n"


# Messages


@every_gate
@every_form
@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("lone \ud800 surrogate \udfff", "lone ? surrogate ?"),
        ("bell \x07 null \x00 escape \x1b[31m", "bell \x07 null \x00 escape \x1b[31m"),
        ("\r\nSet-Cookie: a=b\r\n\r\n", "\r\nSet-Cookie: a=b\r\n\r\n"),
        ("x" * 5000, "x" * 5000),
    ],
)
def test_unchecked_message(gate, form, message, shown):
    """A message that no setter would take, given by a store, makes a whole refusal, never a 500."""
    response = ask(behind(gate, Maintenance(backend=Unchecked(message))), form)
    assert response.status_code == 503
    assert well_formed(response.headers, response.content, shown)


@every_gate
@every_form
@pytest.mark.parametrize(
    ("message", "shown"),
    [("\ud800", "unknown"), ("bell \x07 null \x00", "bell \x07 null \x00"), ("x" * 5000, "x" * 5000)],
)
def test_message_written_by_hand(gate, form, message, shown, tmp_path):
    """The same in a document written by hand; one that no text can hold makes the document corrupt."""
    path = tmp_path / "state"
    switch = {"since": "2026-01-01T00:00:00Z", "mode": "full", "message": message}
    path.write_text(json.dumps({"schema": 1, "revision": 1, "switch": switch, "windows": [], "holds": []}))
    configured = MaintenanceSettings(on_backend_error="closed", message="unknown")
    response = ask(behind(gate, Maintenance(configured, backend=LocalFileBackend(path))), form)
    assert response.status_code == 503
    assert well_formed(response.headers, response.content, shown)


@every_json
@every_gate
@pytest.mark.parametrize(
    ("code", "title"), [(500, "Internal Server Error"), (429, "Too Many Requests"), (599, "Closed for maintenance")]
)
def test_own_status_code(gate, form, code, title):
    """A `status_code` of one's own is in the status line and the body, with its title (RFC 9457 section 4.2.1)."""
    response = ask(behind(gate, made(status_code=code)), form)
    assert response.status_code == code
    assert (response.json()["status"], response.json()["title"]) == (code, title)
    assert response.headers["Retry-After"] == "60"


# Retry-After


@every_gate
@every_json
@given(jitter=st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_jitter(gate, form, jitter):
    """Jitter adds up to its seconds to `Retry-After`, and the body has the same figure."""
    response = ask(behind(gate, made(retry_after=100, retry_after_jitter=jitter)), form)
    assert 100 <= response.json()["retry_after"] <= 100 + jitter
    assert response.headers["Retry-After"] == str(response.json()["retry_after"])


def test_jitter_spreads():
    """Two clients do not all get the same figure, and each form tells the one of its own header."""
    app = behind("guard", made(retry_after=1, retry_after_jitter=10**6))
    responses = [ask(app, TEXT) for _ in range(5)]
    figures = [response.headers["Retry-After"] for response in responses]
    assert len(set(figures)) > 1
    assert all(f"Try again in {n} s" in response.text for n, response in zip(figures, responses, strict=True))


@every_form
def test_jitter_adds_nothing_to_nothing(form):
    """Where there is nothing honest to say, jitter does not make a figure up."""
    response = ask(behind("guard", made(retry_after=None, retry_after_jitter=50)), form)
    assert "Retry-After" not in response.headers


@contextmanager
def served(app):
    """Serve an app by uvicorn in a thread, on a port that the system chooses."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


@every_gate
def test_urllib3_honours_it(gate, monkeypatch):
    """urllib3's `Retry` waits as long as the header says, and then gets the answer of the reopened service."""
    urllib3 = pytest.importorskip("urllib3")
    maintenance = made({"retry_after": 7})
    waited = []

    def wait(seconds):
        waited.append(seconds)
        anyio.run(maintenance.disable)

    # Only urllib3's own clock: uvicorn's thread uses the real one.
    monkeypatch.setattr("urllib3.util.retry.time", type("Clock", (), {"sleep": wait, "time": time.time}))
    with served(behind(gate, maintenance)) as port, urllib3.PoolManager() as pool:
        retries = urllib3.Retry(2, backoff_factor=0, status_forcelist=[503])
        response = pool.request("GET", f"http://127.0.0.1:{port}/x", retries=retries)
    assert (response.status, response.data) == (200, b'"open"')
    assert waited == [7]


# Whatever a client sends

TOKENS = [*_FORMS, "text/*", "*/*", ";q=0", ";q=0.5", ";q=x", ",", ";", "/", "text/event-stream"]
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60)
ACCEPTS = VALUES | st.lists(st.sampled_from(TOKENS)).map("".join)
ORIGINS = VALUES | st.sampled_from(["https://friend.example", "https://foe.example", "null"])
HOSTS = VALUES | st.sampled_from(["testserver", "a.example:80", "[::1]", "evil.example/docs", "x/openapi.json?"])
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
PATHS = st.sampled_from(["/x", "/only-get", "/missing", "/x/"])


async def raw(app, method, path, headers):
    """Send one request without a client's own opinion on headers; give status, headers and body."""
    sent = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("testserver", 80),
        "client": ("203.0.113.1", 1),
        "headers": [(name, value.encode("latin-1")) for name, value in headers],
    }

    async def send(message):
        sent.append(message)

    await app(scope, anyio.sleep_forever, send)
    start, *bodies = sent
    found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return start["status"], found, b"".join(message.get("body", b"") for message in bodies)


@every_gate
@given(
    accept=ACCEPTS,
    origin=st.none() | ORIGINS,
    host=st.none() | HOSTS,
    method=METHODS,
    path=PATHS,
    preflight=st.none() | st.sampled_from(["GET", "BREW"]),
    message=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=80),
)
@settings(max_examples=150, deadline=None)
def test_any_request_at_a_closed_app(gate, accept, origin, host, method, path, preflight, message):
    """Whatever is sent, the answer is a whole 503, or the framework's own 404, 405, redirect or preflight."""
    app = behind(gate, made({"message": message}), cors=True)
    optional = {b"origin": origin, b"host": host, b"access-control-request-method": preflight}
    headers = [(b"accept", accept), *((name, value) for name, value in optional.items() if value is not None)]
    status, found, body = anyio.run(raw, app, method, path, headers)
    wrong_method = (path == "/only-get" and method != "GET") or method in {"OPTIONS", "TRACE", "BREW"}
    if method == "OPTIONS" and origin is not None and preflight is not None:
        friendly = (origin, preflight) == ("https://friend.example", "GET")
        assert (status, body) == ((200, b"OK") if friendly else (400, body))
        assert body.startswith((b"OK", b"Disallowed"))
    elif path == "/missing":
        assert (status, body) == (404, ANSWERS[404])
    elif path == "/x/":
        assert status == 307
    elif wrong_method:
        assert (status, body) == (405, ANSWERS[405])
    else:
        assert status == 503
        assert well_formed(found, body, message) if method != "HEAD" else body == b""
    assert ("access-control-allow-origin" in found) is (origin == "https://friend.example")
