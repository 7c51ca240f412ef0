"""The page for browsers: what it says, what it lets nobody say, and templates of users."""

import hashlib
import importlib.util
import re
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import anyio
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from fastapi_maintenance import MaintenanceStatus
from fastapi_maintenance.page import CONDITIONS, PLACEHOLDERS, Page

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 11, 20, 13, 5, 7, 250_000, tzinfo=UTC)
CLOSED = MaintenanceStatus(active=True, mode="full", phase="closed", retry_after=60)
VOID = {"meta", "link"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</p></main></title></style></script><!-- -->",
    "\"'><img src=x onerror=alert(1)>",
    "$message ${title} $$ $",
    "<!-- if until -->",
    "&lt;b&gt; &amp; &#0;",
    "one\n\ntwo\tthree ",
    "\u202eright to left\u200f\u2067",
    "é" * 1024,
)


class Document(HTMLParser):
    """A page as a list of its elements, and the text and attributes of those that have an id."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.texts, self.attributes = [], [], {}, {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        name = found.get("id", tag)
        self.attributes[name] = found
        if tag not in VOID:
            self.open.append(name)

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        for name in self.open:
            self.texts[name] = self.texts.get(name, "") + data


@pytest.fixture
def template(tmp_path):
    """Give a function that makes a page from a user's template."""

    def make(content):
        path = tmp_path / "own.html"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Page(path)

    return make


def rendered(status=CLOSED, message="Back soon.", now=NOW):
    """Parse the built-in page."""
    return Document(Page().render(status, message, now))


# What it says


def test_the_page_tells_the_message():
    """Title and headline say that it is down, a paragraph of its own direction and language has the message."""
    document = rendered(message="Back soon.")
    assert document.texts["title"] == document.texts["h1"] == "Down for maintenance"
    assert document.texts["message"] == "Back soon."
    assert document.attributes["message"] == {"id": "message", "dir": "auto", "lang": ""}
    assert document.attributes["html"] == {"lang": "en"}
    assert not document.open


def test_the_end_is_told_in_utc_for_a_script_to_translate():
    """A known end stands there as a time element in UTC, with what is left."""
    until = datetime(2026, 11, 20, 15, 30, 9, 5, tzinfo=timezone(timedelta(hours=1)))
    document = rendered(replace(CLOSED, until=until))
    assert document.attributes["time"] == {"datetime": "2026-11-20T14:30:09Z"}
    assert document.texts["time"] == "2026-11-20 14:30 UTC"
    assert document.texts["left"] == "1 hour 26 minutes left"
    assert document.attributes["main"]["data-now"] == "2026-11-20T13:05:07Z"


def test_an_unknown_end_is_not_mentioned():
    """Without an end there is no time, no list and nothing about what is left."""
    document = rendered()
    assert {"time", "dl", "dd"}.isdisjoint(document.tags)
    assert "left" not in document.texts


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (timedelta(seconds=-5), "less than a minute"),
        (timedelta(seconds=60), "less than a minute"),
        (timedelta(seconds=61), "2 minutes"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(hours=2, minutes=1), "2 hours 1 minute"),
        (timedelta(days=1), "1 day"),
        (timedelta(days=3, hours=1, minutes=59), "3 days 1 hour"),
        (datetime.max.replace(tzinfo=UTC) - NOW, "2912119 days 10 hours"),
    ],
)
def test_what_is_left_is_said_in_two_units(left, words):
    """Days and hours, or hours and minutes; a minute that has begun counts."""
    assert rendered(replace(CLOSED, until=NOW + left)).texts["left"] == f"{words} left"


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, "30"), (1, "5"), (7, "7"), (60, "60"), (86400, "60")])
def test_it_looks_again_within_bounds(retry_after, seconds):
    """Script and refresh element look again after the seconds of Retry-After, no sooner than 5 and no later than 60."""
    html = Page().render(replace(CLOSED, retry_after=retry_after), "x", NOW)
    assert f'<noscript><meta http-equiv="refresh" content="{seconds}"></noscript>' in html
    assert Document(html).attributes["main"]["data-refresh"] == seconds


def test_read_only_does_not_look_again():
    """In read-only mode reading works all the time, so a look tells nothing; the page says what to do instead."""
    html = Page().render(replace(CLOSED, mode="read_only"), "x", NOW)
    document = Document(html)
    assert document.texts["h1"] == "Read-only for maintenance"
    assert "Changes are not accepted" in document.texts["main"]
    assert "refresh" not in html.split("<style>")[0]
    assert document.attributes["main"]["data-refresh"] == ""


def test_a_status_without_a_mode_is_a_full_closure():
    """A status that names no mode gets the page of a full closure."""
    assert rendered(MaintenanceStatus()).texts["h1"] == "Down for maintenance"


@pytest.mark.parametrize("name", ["now", "until"])
def test_naive_times_are_refused(name):
    """A time without a zone is an error that names it."""
    times = {"now": NOW, "until": NOW, name: datetime(2026, 11, 20, 13)}  # noqa: DTZ001 - naive on purpose
    with pytest.raises(ValueError, match=f"{name} has no time zone"):
        Page().render(replace(CLOSED, until=times["until"]), "x", times["now"])


# What it lets nobody say


@pytest.mark.parametrize("message", HOSTILE)
def test_a_hostile_message_stays_text(message):
    """Markup, quotes, placeholders, conditions, line feeds and bidirectional controls are text like any other."""
    document = rendered(message=message)
    assert document.texts["message"] == message
    assert document.tags == rendered().tags


@given(st.text(st.characters(), max_size=60))
def test_any_text_stays_text(message):
    """Whatever the message is, it is the text of one element, can be sent, and changes nothing else."""
    document = rendered(message=message)
    shown = document.texts.get("message", "")
    shown.encode()
    assert document.tags == rendered().tags
    assert len(shown) == len(re.sub("\r\n?", "\n", message))
    assert all(kept in {"\ufffd", said} for kept, said in zip(shown, re.sub("\r\n?", "\n", message), strict=True))


@pytest.mark.parametrize(
    "unfit", ["\x00", "\x0b", "\x0c", "\x1b", "\x7f", "\x85", "\ud800", "\ufdd0", "\uffff", "\U0010fffe"]
)
def test_what_no_page_may_carry_is_replaced(unfit):
    """Control characters, lone surrogates and noncharacters of a message written by hand become U+FFFD."""
    assert rendered(message=f"a{unfit}b").texts["message"] == "a\ufffdb"


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_line_ends_are_line_feeds(end):
    """All line ends show as one line feed."""
    assert rendered(message=f"one{end}two").texts["message"] == "one\ntwo"


# Nothing from elsewhere


def test_the_page_refers_to_nothing_else():
    """No element loads or links anything, and no inline handler or style attribute would need a laxer policy."""
    html = Page().render(replace(CLOSED, until=NOW + timedelta(hours=1)), "x", NOW)
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"<[^>]+\s(?:style|on\w+|src|srcset|action)\s*=", html)
    assert re.findall(r'<[^>]+\shref="([^"]{9})', html) == ["data:imag"]


def test_the_policy_allows_exactly_this_style_and_script():
    """The policy denies all but the hashed style and script, the icon, and looking again at the same origin."""
    html = Page().render(CLOSED, "x", NOW)
    hashes = {
        tag: b64encode(
            hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1].encode()).digest()
        ).decode()
        for tag in ("style", "script")
    }
    assert Page().content_security_policy == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def test_the_built_in_page_is_a_good_start_for_ones_own(template):
    """The built-in template is one that a user may copy and change."""
    source = (ROOT / "fastapi_maintenance" / "page.html").read_text()
    status = replace(CLOSED, until=NOW + timedelta(hours=1))
    assert template(source).render(status, "x", NOW) == Page().render(status, "x", NOW)


# Templates of users


def test_an_own_template_gets_all_values(template):
    """Each placeholder is filled in, `$$` is a dollar sign, and there is no policy for a page nobody knows."""
    page = template("\ufeff" + "|".join(f"${{{name}}}" for name in PLACEHOLDERS) + "|$$")
    status = replace(CLOSED, until=NOW + timedelta(minutes=85), retry_after=5100)
    assert page.render(status, "Back soon.", NOW).split("|") == [
        "Down for maintenance", "Back soon.", "full", "2026-11-20T14:30:07Z", "2026-11-20 14:30 UTC",
        "1 hour 25 minutes", "2026-11-20T13:05:07Z", "5100", "60", "$",
    ]  # fmt: skip
    assert page.content_security_policy is None


def test_unknown_values_are_empty(template):
    """What is not known leaves nothing behind."""
    page = template("[$until|$until_text|$left|$retry_after]")
    assert page.render(replace(CLOSED, retry_after=None), "x", NOW) == "[|||]"


@pytest.fixture(scope="module")
def quoting(tmp_path_factory):
    """Give a page that has the message as text and in both kinds of quotes."""
    path = tmp_path_factory.mktemp("quoting") / "own.html"
    path.write_text("""<p title="$message" lang='$message'></p><b>$message</b>""")
    return Page(path)


@given(message=st.text(st.characters(), max_size=60))
def test_any_text_stays_text_in_an_own_template(quoting, message):
    """The message is escaped for text and for attributes in either kind of quotes."""
    document = Document(quoting.render(CLOSED, message, NOW))
    assert document.tags == ["p", "b"]
    assert document.attributes["p"]["title"] == document.attributes["p"]["lang"] == document.texts.get("b", "")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("\u202eturned", "\u202eturned\u202c"),
        ("\u2067a\u202eb", "\u2067a\u202eb\u202c\u2069"),
        ("\u2068a\u202bb\u2069c", "\u2068a\u202bb\u2069c"),
        ("\u202aa\u202cb\u202c", "\u202aa\u202cb"),
        ("\u2067a\u202cb\u2069\u2069", "\u2067ab\u2069"),
        ("\u202ea\nb\u202ec\u2029d\u202c", "\u202ea\u202c\nb\u202ec\u202c\u2029d"),
        ("\u200e\u200f\u061c", "\u200e\u200f\u061c"),
    ],
)
def test_an_own_template_is_not_turned_by_the_message(template, message, shown):
    """Bidirectional controls of the message are closed in it, and close nothing around it, line by line."""
    assert template("<b>$message</b> by us").render(CLOSED, message, NOW) == f"<b>{shown}</b> by us"


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (CLOSED, "refresh,full,"),
        (replace(CLOSED, mode="read_only"), "read_only,"),
        (replace(CLOSED, until=NOW + timedelta(hours=1)), "1 hour,refresh,full,"),
    ],
)
def test_parts_of_a_template_depend_on_what_is_known(template, status, shown):
    """A part stands there when its placeholder is not empty, or when the mode is the named one."""
    page = template(
        "<!-- if until -->\n$left,<!-- end if --><!--if refresh-->refresh,<!-- end if -->\n"
        "<!-- if full -->full,<!-- end  if --><!-- if read_only -->read_only,<!-- end if -->"
    )
    assert page.render(status, "<!-- if until -->", NOW) == shown


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("one\n$titel", r"line 2: unknown placeholder \$titel"),
        ("${Message}", r"line 1: unknown placeholder \$Message"),
        ("a\n\n$(document)", "line 3: a dollar sign that begins no placeholder"),
        ("5 $", "line 1: a dollar sign"),
        ("\n<!-- if until -->", "line 2: <!-- if until --> has no <!-- end if -->"),
        ("<!-- end if -->", "line 1: <!-- end if --> does not fit here"),
        ("<!-- if until --><!-- if left --><!-- end if --><!-- end if -->", "<!-- if left --> does not fit here"),
        ("<!-- if unitl --><!-- end if -->", "unknown condition unitl"),
    ],
)
def test_a_wrong_template_is_refused_at_once(template, tmp_path, content, problem):
    """The error names the file, the line, what is wrong, and all that is known."""
    with pytest.raises(ValueError, match=problem) as caught:
        template(content)
    assert str(tmp_path / "own.html") in str(caught.value)
    assert all(f"${name}" in str(caught.value) for name in PLACEHOLDERS)


def test_a_template_that_is_not_utf8_is_refused_at_once(template, tmp_path):
    """Bytes that are no text are an error that names the file."""
    with pytest.raises(ValueError, match=r"cannot be read: 'utf-8' codec") as caught:
        template(b"caf\xe9")
    assert str(tmp_path / "own.html") in str(caught.value)


@pytest.mark.parametrize("name", ["missing.html", ".", "nul\0l"])
def test_a_template_that_cannot_be_read_is_refused_at_once(tmp_path, name):
    """A missing file, a directory or an impossible name is an error that names it."""
    with pytest.raises(ValueError, match=r"page template .* cannot be read") as caught:
        Page(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_each_condition_is_documented():
    """A condition is a placeholder or a mode."""
    assert set(CONDITIONS) == {*PLACEHOLDERS, "full", "read_only"}


# Jinja2


@pytest.mark.parametrize(
    ("until", "tea"), [(None, False), (datetime(2999, 1, 1, 16, 30, tzinfo=UTC), True)], ids=["unknown", "known"]
)
def test_jinja_makes_the_page(monkeypatch, tmp_path, until, tea):
    """The Jinja2 example answers its own page, escaped, with the end when it is known, and the shop when it is open."""
    monkeypatch.setenv("FASTAPI_MAINTENANCE_BACKEND", f"file:{tmp_path / 'state'}")
    spec = importlib.util.spec_from_file_location("jinja_page", ROOT / "examples" / "jinja_page.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    client = TestClient(example.app)
    assert "<h1>Tea</h1>" in client.get("/").text

    async def close():
        await example.maintenance.enable(message="<b>milk</b>", until=until)

    anyio.run(close)
    refused = client.get("/")
    assert (refused.status_code, refused.headers["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert int(refused.headers["Retry-After"]) >= 60
    assert "&lt;b&gt;milk&lt;/b&gt;" in refused.text
    assert ("Tea again at 16:30 UTC." in refused.text) is tea
