"""Who changed what: one structured log line for each change of state."""

import logging
import os
import socket
from functools import cache

logger = logging.getLogger("fastapi_maintenance")


def whoami() -> str:
    """Name this process for `by`: user@host:pid."""
    return f"{_user()}@{_host()}:{os.getpid()}"


def record(what: str, *, scope: str, by: str | None, why: str | None, revision: int | None) -> None:
    """Log one change of state, at info.

    Args:
        what: `enabled`, `disabled`, `window scheduled`, `hold begun`, …
        scope: The object's scope, or the backend's name where no object was asked.
        by: Who did it.
        why: The message.
        revision: The state's revision after the change, `None` where the backend has none to tell.
    """
    logger.info(
        "Maintenance %s: scope=%s by=%s revision=%s why=%r",
        _in_line(what),
        scope,
        _in_line(by),
        revision,
        why,
        extra={"what": what, "scope": scope, "by": by, "why": why, "revision": revision},
    )


def _in_line(text: str | None) -> str | None:
    """Give `text` so that it cannot begin a line of its own in the log."""
    return text if text is None or text.isprintable() else repr(text)


@cache
def _host() -> str:
    return socket.gethostname()


def _user() -> str:
    """Name the user that the system sees now: a server may have given up root since it started."""
    if not hasattr(os, "geteuid"):  # pragma: no cover - Windows
        return os.environ.get("USERNAME", "unknown")
    return _name_of(os.geteuid())


@cache
def _name_of(uid: int) -> str:
    """Give the name of a user, the number where it has no name."""
    import pwd  # noqa: PLC0415 - not on Windows

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
