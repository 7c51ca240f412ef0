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
        what,
        scope,
        by,
        revision,
        why,
        extra={"what": what, "scope": scope, "by": by, "why": why, "revision": revision},
    )


@cache
def _host() -> str:
    return socket.gethostname()


@cache
def _user() -> str:
    """Name the user that the system sees, by number where it has no name."""
    if not hasattr(os, "geteuid"):  # pragma: no cover - Windows
        return os.environ.get("USERNAME", "unknown")
    import pwd  # noqa: PLC0415 - not on Windows

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
