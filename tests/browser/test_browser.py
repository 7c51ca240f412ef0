"""The page in a real headless Chromium: how it looks, that it goes on by itself, that it lets nothing in or out.

`nox -s browser` brings playwright and axe-core; Chromium comes from the system. Screenshots go to `PAGE_SCREENSHOTS`
when that is set. The browser's clock is set forward where a test would otherwise wait.
"""

import asyncio
import json
import os
import re
import shutil
import socket
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse

from fastapi_maintenance import Maintenance, MaintenanceModeMiddleware, MaintenanceStatus
from fastapi_maintenance.backends import LocalFileBackend
from fastapi_maintenance.page import Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; run nox -s browser")
expect = playwright.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("Chromium is not installed (Debian: apt-get install chromium)", allow_module_level=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"phone": (360, 740), "desktop": (1280, 800)}
SCHEMES = ("light", "dark")
HOSTILE = (
    "<script>document.title = 'owned'</script>\n<img src=//evil.example/x onerror=\"document.title='owned'\">\n"
    "</p></main></style></script><!-- $message ${title} \"'>\n\u202eturned \u2067\u200f\n\u05e9\u05dc\u05d5\u05dd\n"
)
HOSTILE += "x" * (2048 - len(HOSTILE.encode()))
NOON = datetime(2099, 11, 20, 12, tzinfo=UTC)
HEAD = '<!DOCTYPE html><link rel="icon" href="data:,">'
FORM = f'{HEAD}<title>Form</title><form method="post" action="/form"><button>Send</button></form>'


class Site:
    """A small service with a switch, behind a real server."""

    def __init__(self, path):
        self.file = path
        self.maintenance = Maintenance(backend=LocalFileBackend(path))
        self.seen = []
        self.fault = None
        app = FastAPI()
        app.add_middleware(MaintenanceModeMiddleware, maintenance=self.maintenance)
        app.get("/")(lambda: HTMLResponse(f"{HEAD}<title>Open</title>"))
        app.get("/moved")(lambda: RedirectResponse(self.url.replace("127.0.0.1", "localhost")))
        app.get("/form")(lambda: HTMLResponse(FORM))
        app.post("/form")(lambda: HTMLResponse(f"{HEAD}<title>Sent</title>"))
        self.app = app
        self.loop = asyncio.new_event_loop()

    async def __call__(self, scope, receive, send):
        """Note each request; a fault of the service answers before the gate does."""
        if scope["type"] == "http":
            self.seen.append((scope["method"], scope["path"]))
        app = self.app if self.fault is None or scope["type"] != "http" else self.fault
        await app(scope, receive, send)

    def enable(self, **how):
        """Close it, from the test's thread."""
        asyncio.run_coroutine_threadsafe(self.maintenance.enable(**how), self.loop).result(10)

    def disable(self):
        """Open it."""
        asyncio.run_coroutine_threadsafe(self.maintenance.disable(), self.loop).result(10)


@contextmanager
def served(site):
    """Serve `site` on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        site.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(site, log_level="warning", lifespan="off"))

        def run():
            with asyncio.Runner(loop_factory=lambda: site.loop) as runner:
                runner.run(server.serve([listener]))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield site
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture
def site(tmp_path):
    """Give a served site that is open."""
    with served(Site(tmp_path / "maintenance.state")) as site:
        yield site


@pytest.fixture(scope="module")
def chromium():
    """Give a headless Chromium with a profile of its own."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, site):
    """Give a function that opens a page; afterwards nothing may have gone elsewhere, no policy been violated."""
    contexts, elsewhere, violations = [], [], []

    def note(request):
        # Where a redirect leads is reported, too, though a page that does not follow it sends nothing.
        asked = not request.is_navigation_request() and request.redirected_from is None
        if asked and not request.url.startswith((f"{site.url}/", "data:")):
            elsewhere.append(request.url)

    def hear(message):
        if "Content Security Policy" in message.text:
            violations.append(message.text)

    def visit(path="/", *, size="desktop", clock=None, **options):
        width, height = SIZES[size]
        given = {"locale": "en-GB", "timezone_id": "Asia/Kathmandu", "viewport": {"width": width, "height": height}}
        context = chromium.new_context(**given | options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", note)
        page.on("console", hear)
        if clock:
            page.clock.install(time=clock)
        page.goto(f"{site.url}{path}")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert violations == []
    assert ("GET", "/favicon.ico") not in site.seen


def forward(page, done):
    """Set the browser's clock forward, a look at a time, until `done()`."""
    for _ in range(200):
        if done():
            return
        page.clock.fast_forward(91_000)
        page.wait_for_timeout(50)
    pytest.fail("the page does not look")


def look(page, site):
    """Make the page look once more."""
    before = len(site.seen)
    forward(page, lambda: len(site.seen) > before)


def soon(**left):
    """Give an instant ahead."""
    return datetime.now(UTC) + timedelta(**left)


# How it looks


@pytest.mark.parametrize("known", [True, False], ids=["end", "no-end"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_it_looks_right(site, visit, tmp_path, size, scheme, known):
    """On a phone and a desktop, light and dark, all is visible and whole, in the colours of the scheme."""
    site.enable(
        message="We are moving to a faster database.\nNothing is lost.", until=soon(minutes=85) if known else None
    )
    page = visit(size=size, color_scheme=scheme)
    folder = Path(os.environ.get("PAGE_SCREENSHOTS") or tmp_path)
    page.screenshot(path=folder / f"page-{SIZES[size][0]}-{scheme}-{'end' if known else 'no-end'}.png", full_page=True)
    for part in ["h1", "#message", ".note"] + ["time", "#left"] * known:
        expect(page.locator(part)).to_be_in_viewport(ratio=1)
    assert page.locator("time").count() == known
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    behind, above = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("backgroundColor", "color")
    )
    assert (behind - above > 500) if scheme == "light" else (above - behind > 500)


def test_line_feeds_show(site, visit):
    """Each line of the message is a line of its own."""
    site.enable(message="one\ntwo\nthree")
    message = visit().locator("#message")
    assert message.inner_text() == "one\ntwo\nthree"
    lines = message.evaluate(
        "e => { const r = document.createRange(); r.selectNodeContents(e); return r.getClientRects().length }"
    )
    assert lines >= 3


def test_nothing_moves(site, visit):
    """There is no animation and no transition, so nobody has to ask for less motion."""
    site.enable(until=soon(minutes=85))
    page = visit(reduced_motion="no-preference")
    assert page.evaluate("document.getAnimations().length") == 0
    moving = "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).transitionDuration !== '0s').length"
    assert page.evaluate(moving) == 0


# The end


@pytest.mark.parametrize(
    ("hours", "zone", "language", "text"),
    [
        (2, "UTC", "en-GB", "14:00 UTC"),
        (2, "America/New_York", "en-US", r"9:00\sAM EST"),
        (8, "Asia/Kathmandu", "en-GB", r"Saturday,? 21 November at 01:45 GMT\+5:45"),
        (24 * 60, "Europe/Berlin", "de-DE", r"Dienstag, 19\. Januar 2100 um 13:00 MEZ"),
    ],
)
def test_the_end_is_told_in_the_readers_time(site, visit, hours, zone, language, text, monkeypatch):
    """A script tells the end in the reader's time zone and language, with the date and year where they differ."""
    monkeypatch.setattr("fastapi_maintenance.refusal.utcnow", lambda: NOON)
    site.enable(until=NOON + timedelta(hours=hours))
    time = visit(timezone_id=zone, locale=language).locator("time")
    expect(time).to_have_text(re.compile(f"^{text}$"))
    expect(time).to_have_attribute("lang", language)


def test_what_is_left_counts_down(site, visit, monkeypatch):
    """What is left goes down by itself, whatever the reader's clock says, and an end that passed is admitted."""
    monkeypatch.setattr("fastapi_maintenance.refusal.utcnow", lambda: NOON)
    site.enable(until=NOON + timedelta(minutes=85))
    page = visit(clock=datetime(2031, 1, 1, tzinfo=UTC))
    site.fault = PlainTextResponse("broken", 500)
    left = page.locator("#left")
    expect(left).to_have_text("1 hour 25 minutes left")
    page.clock.fast_forward("01:00:00")
    expect(left).to_have_text("25 minutes left")
    page.clock.fast_forward("24:10")
    expect(left).to_have_text("less than a minute left")
    page.clock.fast_forward("01:00")
    expect(left).to_have_text("It takes longer than expected")


@pytest.mark.parametrize("seconds", [30, 90, 3600, 3630, 7200, 7290, 86400, 86370, 90030, 270_000])
def test_script_and_server_use_the_same_words(site, visit, seconds, monkeypatch):
    """What the script says is what the server said."""
    monkeypatch.setattr("fastapi_maintenance.refusal.utcnow", lambda: NOON)
    site.enable(until=NOON + timedelta(seconds=seconds))
    texts = [visit(java_script_enabled=on).locator("#left").inner_text() for on in (False, True)]
    assert texts[0] == texts[1]


# It goes on by itself


def test_it_goes_on_when_the_service_reopens(site, visit):
    """In real time: the page is replaced by the service within the seconds it was told, and their jitter."""
    site.enable(retry_after=1)
    page = visit("/?a=1#part")
    expect(page).to_have_title("Down for maintenance")
    site.disable()
    expect(page).to_have_title("Open", timeout=20_000)
    assert page.url == f"{site.url}/?a=1#part"


@pytest.mark.parametrize("path", ["/", "/?a=1", "/#part", "/?a=1#part"])
def test_it_keeps_the_address(site, visit, path):
    """Query and fragment are there when it goes on, and no step is added to the history."""
    site.enable()
    page = visit(path, clock=NOON)
    steps = page.evaluate("history.length")
    site.disable()
    look(page, site)
    expect(page).to_have_title("Open")
    assert page.url == f"{site.url}{path}"
    assert page.evaluate("history.length") == steps


@pytest.mark.parametrize("fragment", ["", "#part"])
def test_it_does_not_send_a_form_again(site, visit, fragment):
    """As the answer to a form that was sent, it goes on with a plain look, not with the form."""
    page = visit(f"/form{fragment}", clock=NOON)
    page.evaluate(f"document.forms[0].action = '/form{fragment}'")
    site.enable()
    page.get_by_role("button").click()
    expect(page).to_have_title("Down for maintenance")
    site.disable()
    look(page, site)
    expect(page).to_have_title("Form")
    assert site.seen.count(("POST", "/form")) == 1
    assert page.url == f"{site.url}/form{fragment}"


@pytest.mark.parametrize(
    "fault",
    [
        PlainTextResponse("broken", 500),
        PlainTextResponse("overloaded", 503),
        PlainTextResponse("overloaded", 503, {"Retry-After": "1"}),
        PlainTextResponse("not here", 404),
        PlainTextResponse("a page of somebody else", 200, {"Maintenance": "full"}),
    ],
    ids=["500", "503", "503-retry", "404", "marked"],
)
def test_it_stays_unless_the_answer_is_healthy(site, visit, fault):
    """An error, another 503 or an answer that says maintenance leaves the page where it is, and it looks again."""
    site.enable(message="Back soon.")
    page = visit(clock=NOON)
    page.evaluate("window.same = true")
    site.fault = fault
    for _ in range(3):
        look(page, site)
    assert page.evaluate("window.same")
    expect(page.locator("#message")).to_have_text("Back soon.")
    site.fault = None
    site.disable()
    look(page, site)
    expect(page).to_have_title("Open")


def test_it_stays_while_the_server_is_away(site, visit):
    """A server that cannot be reached is no reason to leave."""
    site.enable()
    page = visit(clock=NOON)
    page.context.set_offline(True)
    failed = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    forward(page, lambda: len(failed) > 1)
    expect(page).to_have_title("Down for maintenance")
    page.context.set_offline(False)
    site.disable()
    look(page, site)
    expect(page).to_have_title("Open")


def test_it_tells_a_new_message_and_end(site, visit):
    """When it looks and it is still closed, what is new shows: the message, an end that moved, one that is gone."""
    site.enable(message="Short.", until=soon(minutes=20))
    page = visit(clock=NOON)
    expect(page.locator("#left")).to_have_text("20 minutes left")
    site.enable(message="Longer: <b>sorry</b>", until=soon(minutes=200))
    look(page, site)
    expect(page.locator("#message")).to_have_text("Longer: <b>sorry</b>")
    expect(page.locator("#left")).to_have_text(re.compile(r"3 hours (1\d|20) minutes left"))
    expect(page.locator("time")).to_contain_text("GMT+5:45")
    site.enable(message="Who knows.")
    look(page, site)
    expect(page.locator("#message")).to_have_text("Who knows.")
    expect(page.locator("time")).to_have_count(0)


def test_it_leaves_the_text_alone_when_nothing_is_new(site, visit):
    """A look that tells nothing new changes nothing, so a selection and a reading position stay."""
    site.enable(message="Back soon.", until=soon(minutes=20))
    page = visit(clock=NOON)
    page.evaluate("window.paragraph = document.getElementById('message')")
    for _ in range(2):
        look(page, site)
    assert page.evaluate("window.paragraph.isConnected")


def test_it_looks_only_while_it_is_seen(site, visit):
    """A hidden page does not look; it does when it is shown again, and goes on."""
    site.enable()
    page = visit(clock=NOON)
    hidden = """value => { Object.defineProperty(document, 'hidden', { get: () => value, configurable: true });
        document.dispatchEvent(new Event('visibilitychange')); }"""
    page.evaluate(hidden, arg=True)
    before = len(site.seen)
    page.clock.fast_forward("10:00")
    page.wait_for_timeout(300)
    assert len(site.seen) == before
    site.disable()
    page.evaluate(hidden, arg=False)
    expect(page).to_have_title("Open")


def test_it_looks_as_often_as_it_is_told(site, visit):
    """It waits for the seconds of the last answer's Retry-After and up to half as many more, longer after an error."""
    site.enable(retry_after=20)
    page = visit(clock=NOON)
    page.evaluate("""() => { const real = window.setTimeout; window.waits = [];
        window.setTimeout = (f, ms) => { window.waits.push(ms / 1000); return real(f, ms); } }""")
    site.enable(retry_after=10)
    look(page, site)
    site.fault = PlainTextResponse("broken", 500)
    forward(page, lambda: page.evaluate("window.waits.length") >= 9)
    waits = page.evaluate("window.waits")
    told = [wait for wait in waits if wait < 15]
    after_errors = waits[len(told) :][:6]
    base = [15, 22.5, 33.75, 50.625, 60, 60]
    assert told
    assert all(wait >= 10 for wait in told)
    assert all(low <= wait <= low * 1.5 for low, wait in zip(base, after_errors, strict=True))
    assert len(set(waits)) == len(waits), "no jitter"


def test_a_redirect_is_for_the_browser_to_follow(site, visit):
    """A gate never redirects, so a redirect means open; the page itself asks no other origin."""
    site.enable()
    page = visit("/moved", clock=NOON)
    site.disable()
    look(page, site)
    expect(page).to_have_title("Open")
    assert page.url == f"{site.url.replace('127.0.0.1', 'localhost')}/"
    assert site.seen == [("GET", "/moved")] * 3 + [("GET", "/")]


def test_read_only_does_not_look(site, visit):
    """In read-only mode the answer to a form stays until the reader goes on."""
    page = visit("/form", clock=NOON)
    site.enable(mode="read_only", message="We copy the database.")
    page.get_by_role("button").click()
    expect(page).to_have_title("Read-only for maintenance")
    before = len(site.seen)
    page.clock.fast_forward("10:00")
    page.wait_for_timeout(300)
    assert len(site.seen) == before


# Nothing gets in


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_hostile_message_stays_text(site, visit, tmp_path, scripts):
    """Markup, quotes, line feeds, bidirectional controls and placeholders are text, and turn nothing around them."""
    site.enable(message=HOSTILE, until=soon(minutes=85))
    page = visit(size="phone", java_script_enabled=scripts)
    assert page.title() == "Down for maintenance"
    assert page.locator("#message").text_content() == HOSTILE
    assert page.locator("#message > *").count() == 0
    assert page.locator("script").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator(".note").inner_text().startswith("No need to reload")
    folder = Path(os.environ.get("PAGE_SCREENSHOTS") or tmp_path)
    page.screenshot(path=folder / f"page-360-hostile-{'scripts' if scripts else 'no-scripts'}.png", full_page=True)


def test_a_message_written_by_hand_is_harmless(site, visit):
    """What no page may carry, in a document written by hand, shows as U+FFFD; length and markup do no harm either."""
    message = "\x00\x1b[31m\x85<script>document.title='owned'</script>\r\n" + "long " * 2000
    site.enable()
    switch = {"since": "2026-11-20T12:00:00Z", "message": message}
    site.file.write_text(json.dumps({"schema": 1, "revision": 9, "switch": switch}))
    page = visit()
    assert page.title() == "Down for maintenance"
    assert page.locator("#message").text_content() == (
        "\ufffd\ufffd[31m\ufffd<script>document.title='owned'</script>\n" + "long " * 2000
    )


def test_the_message_turns_nothing_in_an_own_template(chromium, tmp_path):
    """What stands after the message in a user's template reads from left to right, whatever the message leaves open."""
    own = tmp_path / "own.html"
    own.write_text("<!DOCTYPE html><title>Own</title><p><b>$message</b><i> by us</i></p>")
    status = MaintenanceStatus(active=True, mode="full")
    page = chromium.new_page()
    page.set_content(Page(own).render(status, "\u2067\u202eturned", NOON))
    first, last = page.evaluate("""[1, 5].map(n => {
        const range = document.createRange(), text = document.querySelector("i").firstChild;
        range.setStart(text, n);
        range.setEnd(text, n + 1);
        return range.getBoundingClientRect().left;
    })""")
    page.context.close()
    assert first < last


# Everybody can read it


@pytest.fixture(scope="session")
def axe():
    """Give the source of axe-core."""
    path = os.environ.get("AXE_CORE")
    if not path:
        pytest.skip("axe-core is not there: AXE_CORE does not name axe.min.js; nox -s browser installs it with npm")
    return Path(path).read_text()


@pytest.mark.parametrize("mode", ["full", "read_only"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing(site, visit, axe, size, scheme, mode):
    """axe-core, with all its rules, finds no violation and nothing it is unsure about."""
    page = visit("/form", size=size, color_scheme=scheme)
    site.enable(message="We are moving.\n\u05e9\u05dc\u05d5\u05dd", until=soon(minutes=85), mode=mode)
    page.get_by_role("button").click()
    expect(page.locator("time")).to_contain_text("GMT")
    page.evaluate(axe)
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 15
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"] + found["incomplete"]] == []


def test_without_scripts_it_tells_all_and_looks_again(site, visit):
    """Without scripts the end is told in UTC, with what is left, and the page looks again by itself, in real time."""
    site.enable(message="one\ntwo", retry_after=1, until=None)
    page = visit(java_script_enabled=False)
    assert page.locator("#message").inner_text() == "one\ntwo"
    site.enable(until=datetime(2099, 11, 20, 14, 30, tzinfo=UTC))
    expect(page.locator("time")).to_have_text("2099-11-20 14:30 UTC", timeout=20_000)
    assert re.fullmatch(r"\d+ days( \d+ hours?)? left", page.locator("#left").inner_text())
