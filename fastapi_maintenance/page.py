"""The page that a browser shows while it is closed. It reads templates; everything else is pure."""

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple, Self

from fastapi_maintenance.state import MODES, MaintenanceStatus, Mode, utc

PLACEHOLDERS = {
    "title": "what a tab and a headline say",
    "message": "what to tell people",
    "mode": "`full` or `read_only`",
    "until": "the expected end for a machine, `2026-11-20T14:30:00Z`; empty when unknown",
    "until_text": "the same for people, `2026-11-20 14:30 UTC`; empty when unknown",
    "left": "how long that is, `1 hour 25 minutes`; empty when unknown",
    "now": "when this was answered, `2026-11-20T13:05:00Z`",
    "retry_after": "whole seconds, as in the header; may be empty",
    "refresh": "after how many seconds to look again, 5 to 60; empty where looking tells nothing (`read_only`)",
}
"""What a template may say, and what stands there then."""

CONDITIONS = (*PLACEHOLDERS, *MODES)
"""What `<!-- if NAME -->` may name: a placeholder that is not empty, or the mode."""

_TITLES: dict[Mode, str] = {"full": "Down for maintenance", "read_only": "Read-only for maintenance"}
_CONDITION = r"<!--\s*(?:if\s+(?P<name>\w+)|end\s+if)\s*-->\n?"
_INLINE = r"(?s)<(style|script)>(.*?)</\1>"

_UNFIT = (
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
"""Characters that HTML forbids or that UTF-8 cannot carry."""

_PDF, _PDI = "\u202c", "\u2069"
_CLOSER_OF = dict.fromkeys("\u202a\u202b\u202d\u202e", _PDF) | dict.fromkeys("\u2066\u2067\u2068", _PDI)


class Page:
    """A page made from a template: the built-in one, or a user's own.

    A template is `string.Template` text in UTF-8 with the names in `PLACEHOLDERS`; a dollar sign is written `$$`. What
    stands between `<!-- if NAME -->` and `<!-- end if -->` is left out when the placeholder `NAME` is empty or the mode
    is not `NAME`. Every value is escaped for text and for quoted attributes: those are the places for placeholders,
    scripts and styles are not. Line feeds in the message show with `white-space: pre-line`.

    Args:
        template_path: The user's own template, read now and never again; the built-in page when left out.

    Raises:
        ValueError: The template cannot be read, is not UTF-8, or says what no page can fill in.
    """

    def __init__(self, template_path: Path | None = None) -> None:
        self._own = template_path is not None
        # Neither is read later: what is installed may be replaced while it is closed.
        self._template = _built_in() if template_path is None else _Parsed.from_file(template_path)

    @property
    def content_security_policy(self) -> str | None:
        """The header that allows exactly what the built-in page does; `None` for a user's own template."""
        return None if self._own else self._template.policy

    def render(self, status: MaintenanceStatus, message: str, now: datetime) -> str:
        """Make the page.

        Args:
            status: What is true now.
            message: What to tell people; any text. What no page may carry becomes U+FFFD.
            now: The present, with a time zone.
        """
        now = utc(now, "now")
        until = None if status.until is None else utc(status.until, "until")
        mode = status.mode or "full"
        text = _fit(message)
        return self._template.fill(
            {
                "title": _TITLES[mode],
                "message": _closed(text) if self._own else text,
                "mode": mode,
                "until": "" if until is None else _for_machines(until),
                "until_text": "" if until is None else _for_people(until),
                "left": "" if until is None else _in_words(until - now),
                "now": _for_machines(now),
                "retry_after": "" if status.retry_after is None else str(status.retry_after),
                "refresh": "" if mode == "read_only" else str(_refresh(status.retry_after)),
            }
        )


class _Parsed(NamedTuple):
    """A template in its parts, each with the condition under which it stands there."""

    parts: tuple[tuple[str | None, Template], ...]
    policy: str = ""

    @classmethod
    def from_file(cls, path: Path) -> Self:
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise ValueError(f"page template {path} cannot be read: {error}") from error
        problem = next(_problems(text), None)
        if problem is not None:
            known = ", ".join(f"${name}" for name in PLACEHOLDERS)
            raise ValueError(f"page template {path}, {problem}; known are {known}, and $$ for a dollar sign")
        return cls.from_text(text)

    @classmethod
    def from_text(cls, text: str) -> Self:
        parts: list[tuple[str | None, Template]] = []
        condition, start = None, 0
        for found in re.finditer(_CONDITION, text):
            parts.append((condition, Template(text[start : found.start()])))
            condition, start = found["name"], found.end()
        return cls((*parts, (condition, Template(text[start:]))))

    def fill(self, values: Mapping[str, str]) -> str:
        true = {name for name, value in values.items() if value} | {values["mode"]}
        escaped = {name: escape(value) for name, value in values.items()}
        return "".join(
            part.substitute(escaped) for condition, part in self.parts if condition is None or condition in true
        )


@cache
def _built_in() -> _Parsed:
    text = resources.files("fastapi_maintenance").joinpath("page.html").read_text("utf-8")
    allowed = {tag: b64encode(sha256(inline.encode()).digest()).decode() for tag, inline in re.findall(_INLINE, text)}
    # No `frame-ancestors`: there is nothing to click, and in a frame the message should show, too.
    policy = (
        f"default-src 'none'; style-src 'sha256-{allowed['style']}'; script-src 'sha256-{allowed['script']}'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    return _Parsed.from_text(text)._replace(policy=policy)


def _problems(text: str) -> Iterator[str]:
    """Say what a template has wrong, each with its line."""

    def at(found: re.Match[str]) -> str:
        return f"line {text.count(chr(10), 0, found.start()) + 1}: "

    for found in Template.pattern.finditer(text):
        name = found["named"] or found["braced"]
        if found["invalid"] is not None:
            yield f"{at(found)}a dollar sign that begins no placeholder"
        elif name is not None and name not in PLACEHOLDERS:
            yield f"{at(found)}unknown placeholder ${name}"
    opened: re.Match[str] | None = None
    for found in re.finditer(_CONDITION, text):
        if (found["name"] is None) is (opened is None):
            yield f"{at(found)}{found[0].strip()} does not fit here (they come in pairs and do not nest)"
        if found["name"] is not None and found["name"] not in CONDITIONS:
            yield f"{at(found)}unknown condition {found['name']} (use a placeholder's name, {' or '.join(MODES)})"
        opened = None if found["name"] is None else found
    if opened is not None:
        yield f"{at(opened)}{opened[0].strip()} has no <!-- end if -->"


# Values


def _refresh(retry_after: int | None) -> int:
    """Give the seconds after which a page looks again: soon enough for people, seldom enough for a service."""
    return min(max(retry_after or 30, 5), 60)


def _for_machines(instant: datetime) -> str:
    return f"{instant.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def _for_people(instant: datetime) -> str:
    return f"{instant.replace(tzinfo=None).isoformat(' ', 'minutes')} UTC"


def _in_words(left: timedelta) -> str:
    """Say how long something lasts, in two units at most; the script of the page says the same."""
    minutes = -(-left // timedelta(minutes=1))
    if minutes <= 1:
        return "less than a minute"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = (("day", days), ("hour", hours)) if days else (("hour", hours), ("minute", minutes))
    return " ".join(f"{n} {unit}{'' if n == 1 else 's'}" for unit, n in parts if n)


def _fit(text: str) -> str:
    """Replace what no page may carry, and write line ends as line feeds."""
    return re.sub(_UNFIT, "\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _closed(text: str) -> str:
    """Close what bidirectional controls leave open, and drop those that close nothing.

    Nobody knows where a user's template puts the message, so nothing in it may turn what stands after it.
    """
    return "".join(_closed_paragraph(part) for part in re.split("([\n\u2029])", text))


def _closed_paragraph(text: str) -> str:
    closers: list[str] = []
    kept: list[str] = []
    for character in text:
        if character in _CLOSER_OF:
            closers.append(_CLOSER_OF[character])
        elif character == _PDF:
            if closers[-1:] != [_PDF]:
                continue
            closers.pop()
        elif character == _PDI:
            if _PDI not in closers:
                continue
            while closers.pop() == _PDF:
                pass
        kept.append(character)
    return "".join(kept) + "".join(reversed(closers))
