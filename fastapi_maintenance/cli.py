"""What an operator types: `fastapi-maintenance status`, `on`, `off` and `run`."""

import json
import os
import re
import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, time, timedelta
from typing import Annotated, Any, NoReturn, TextIO
from unicodedata import category

import anyio
import typer
from pydantic import TypeAdapter

from fastapi_maintenance.backends import EnvVarBackend, LocalFileBackend, MemoryBackend
from fastapi_maintenance.backends.base import DrainStore
from fastapi_maintenance.errors import BackendError, DrainTimeout, DrainUnsupported, MaintenanceError, NoWorkers, named
from fastapi_maintenance.inflight import Worker, places
from fastapi_maintenance.lookup import maintenance_named
from fastapi_maintenance.maintenance import Maintenance
from fastapi_maintenance.running import CANNOT_RUN, NOT_FOUND, Run
from fastapi_maintenance.settings import DEFAULT_SCOPE, PREFIX, mode_variable
from fastapi_maintenance.state import Cause, Hold, MaintenanceStatus, Switch, Window, utcnow

OPEN, FAILED, CANNOT_TELL, CLOSED, NOT_DRAINED = 0, 1, 2, 3, 75
"""Exit codes; wrong use is 2 as well."""

DRAIN = 30.0
"""Seconds that `run` waits for requests that are running, unless it is told otherwise."""

ASK_TIMEOUT = 10.0
"""Seconds that a backend may take to answer."""

_DURATION = re.compile(r"(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_COLOURS = {"open": "32", "closing": "33", "closed": "31", "Error": "31"}
_STEPS = {
    "draining": "Closing: {busy} of {workers} workers busy{named}",
    "broken_off": "{signal}: the command was not started.",
    "closed": "Closed. Running: {command}",
    "not_started": "{program}: {reason}",
    "not_passed_on": "{signal} could not be passed on to the command: {reason}",
    "lost": "The hold is lost: it may be open while the command runs!",
    "ended": "The command ended with {code}.",
    "not_reopened": "It could not be opened again: {reason}",
}
_STATUS = TypeAdapter(MaintenanceStatus)
_CAUSE = TypeAdapter[Any](Switch | Hold | Window)

app = typer.Typer(
    name="fastapi-maintenance",
    help="Close a FastAPI service for a while, and open it again.\n\n"
    "It acts on the state that the service's environment names (FASTAPI_MAINTENANCE_BACKEND), or on the object "
    "that --app names. The service need not run.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:ATTRIBUTE", help="A Maintenance, or an application that one serves."),
]
ScopeOption = Annotated[str | None, typer.Option("--scope", metavar="NAME", help="The scope; 'default' if left out.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
ByOption = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who does it; user@host:pid if left out.")]
MessageOption = Annotated[str | None, typer.Option("--message", metavar="TEXT", help="What to tell people.")]


class _Console:
    """Where one verb answers to.

    Args:
        as_json: Whether programs read it.
        fails_with: The exit code when the backend fails.
        answers: `stdout`, unless a command needs that one.
    """

    def __init__(self, *, as_json: bool, fails_with: int, answers: TextIO | None = None) -> None:
        self.as_json = as_json
        self._fails_with = fails_with
        self._answers = answers or sys.stdout

    def answer(self, text: str, data: dict[str, Any]) -> None:
        """Give the answer, in one of its two forms."""
        print(json.dumps(data) if self.as_json else text, file=self._answers)

    def coloured(self, word: str) -> str:
        """Give a word of the answer in its colour, where the answer goes to a terminal."""
        return _coloured(word, self._answers)

    def fail(self, error: Exception, code: int) -> NoReturn:
        """Say what was wrong and what would be right, and end."""
        if self.as_json:
            self.answer("", {"error": type(error).__name__, "reason": _reason(error)})
        else:
            print(f"{_coloured('Error', sys.stderr)}: {_reason(error)}", file=sys.stderr)
        raise typer.Exit(code) from None

    def perform(self, verb: Callable[[], Awaitable[int]]) -> NoReturn:
        """Run a verb and end with its exit code."""
        try:
            code = anyio.run(verb)
        except (ValueError, TypeError) as error:
            self.fail(error, CANNOT_TELL)
        except MaintenanceError as error:
            self.fail(error, self._fails_with)
        raise typer.Exit(code)


@app.command()
def status(
    *,
    workers: Annotated[bool, typer.Option("--workers", help="List the workers that are attached.")] = False,
    scope: ScopeOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell whether it is open, and who keeps it closed.

    Exit code: 0 open, 3 closed, 2 cannot tell.
    """
    console = _Console(as_json=as_json, fails_with=CANNOT_TELL)

    async def verb() -> int:
        maintenance = await _meant(app, scope)
        _check_that_it_can_tell(maintenance)
        return await _tell(console, maintenance, list_workers=workers)

    console.perform(verb)


@app.command()
def on(  # noqa: PLR0913 - what can be said about the switch
    *,
    message: MessageOption = None,
    duration: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Until then: 90s, 30m, 2h, 1h30m, 1d.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="15:30, or 2030-01-31T15:30+01:00; else local time.")
    ] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="full|read_only", help="Refuse all, or writes.")] = "full",
    retry_after: Annotated[
        int | None, typer.Option("--retry-after", metavar="SECONDS", help="What to tell clients while no end is known.")
    ] = None,
    by: ByOption = None,
    scope: ScopeOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
) -> None:
    """Close: turn the switch on, or say it anew.

    Exit code: 0 done, 1 it could not be stored, 2 wrong use.
    """
    console = _Console(as_json=as_json, fails_with=FAILED)

    async def verb() -> int:
        end = _end(duration, until)
        maintenance = await _within_reach(app, scope)
        await maintenance.enable(message=message, retry_after=retry_after, until=end, mode=mode, by=by)
        await _tell(console, maintenance)
        return OPEN

    console.perform(verb)


@app.command()
def off(*, by: ByOption = None, scope: ScopeOption = None, app: AppOption = None, as_json: JsonOption = False) -> None:
    """Open: turn the switch off.

    What a failed `run --on-failure keep` left ends, too. Live holds and windows stay; it tells of them.

    Exit code: 0 open, 3 the switch is off, but something else keeps it closed, 1 it could not be stored, 2 wrong use.
    """
    console = _Console(as_json=as_json, fails_with=FAILED)

    async def verb() -> int:
        maintenance = await _within_reach(app, scope)
        await maintenance.disable(by=by)
        return await _tell(console, maintenance, still=True)

    console.perform(verb)


@app.command(context_settings={"allow_interspersed_args": False})
def run(  # noqa: PLR0913 - what can be said about a hold
    command: Annotated[list[str], typer.Argument(metavar="[--] COMMAND...", help="What to run, with its arguments.")],
    *,
    drain: Annotated[
        float | None,
        typer.Option(
            "--drain", metavar="SECONDS", help=f"How long to wait for running requests; {DRAIN:g} if not said."
        ),
    ] = None,
    no_drain: Annotated[bool, typer.Option("--no-drain", help="Close, but do not wait for running requests.")] = False,
    min_workers: Annotated[
        int, typer.Option("--min-workers", metavar="N", help="How many workers there must be; 0 before the start.")
    ] = 1,
    message: MessageOption = None,
    on_failure: Annotated[
        str,
        typer.Option("--on-failure", metavar="lift|keep", help="Open again when the command fails, or stay closed."),
    ] = "lift",
    by: ByOption = None,
    scope: ScopeOption = None,
    app: AppOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Tell each step in JSON, on stderr.")] = False,
) -> None:
    """Run a command while it is closed and idle.

    Close, wait until no request is running, run the command, and open again when it has ended. The command has this
    one's stdin, stdout and signals. When this process is killed, it stays closed until the command ends; with Redis
    no longer than the lease of a hold.

    Exit code: the command's; 128+n when signal n ended it, or broke off the wait; 126 it cannot be executed, 127 not
    found; 75 not started: it could not be closed, or requests were still running; 76 the command succeeded, but it
    was not sure to be closed all the time, or could not be opened again; 2 wrong use.
    """
    console = _Console(as_json=as_json, fails_with=NOT_DRAINED, answers=sys.stderr)

    async def verb() -> int:
        seconds = _drain(drain, no_drain=no_drain)
        maintenance = await _within_reach(app, scope)
        progress = _Progress(as_json=as_json, command=shlex.join(command))
        hold = maintenance.on(message=message, drain=seconds, min_workers=min_workers, on_failure=on_failure, by=by)
        code = await Run(maintenance, hold, command, progress).to_its_end()
        if code not in {CANNOT_RUN, NOT_FOUND}:
            with suppress(MaintenanceError, OSError):
                await _tell(console, maintenance, still=True)
        return code

    console.perform(verb)


# Which object


async def _meant(app: str | None, scope: str | None) -> Maintenance:
    """Give the object that the options name, else the one that the environment makes."""
    # As servers do it: a service's modules are where it is started. That directory may be gone.
    with suppress(FileNotFoundError):
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 - a string is what the path has
    if app is not None:
        return await maintenance_named(app, scope)
    return Maintenance(scope=DEFAULT_SCOPE if scope is None else scope)


async def _within_reach(app: str | None, scope: str | None) -> Maintenance:
    """Give the object whose state this process can change.

    Raises:
        ValueError: Its state lives in the processes of the service.
    """
    maintenance = await _meant(app, scope)
    if isinstance(maintenance.backend, EnvVarBackend | MemoryBackend):
        raise ValueError(_out_of_reach(maintenance))  # noqa: TRY004 - what the environment says
    return maintenance


def _check_that_it_can_tell(maintenance: Maintenance) -> None:
    """Answer from this process's environment only where that says something."""
    said = "backend" in maintenance.settings.model_fields_set or mode_variable(maintenance.scope) in os.environ
    if isinstance(maintenance.backend, MemoryBackend) or (isinstance(maintenance.backend, EnvVarBackend) and not said):
        raise ValueError(_out_of_reach(maintenance))
    if isinstance(maintenance.backend, EnvVarBackend):
        variable = mode_variable(maintenance.scope)
        print(f"From {variable} as it is here; a running service has an environment of its own.", file=sys.stderr)


def _out_of_reach(maintenance: Maintenance) -> str:
    place = "environment" if isinstance(maintenance.backend, EnvVarBackend) else "memory"
    return (
        f"the state is kept in the {place} of each process, so this command cannot reach the service; "
        f"set {PREFIX}BACKEND=file:PATH, for the service and for this command"
    )


# What is asked for


def _end(duration: str | None, until: str | None) -> datetime | None:
    """Read the two ways to say how long.

    Raises:
        ValueError: Both are given, or one is not understood.
    """
    if duration is not None and until is not None:
        raise ValueError("--for and --until both say when it ends; give one of them")
    if duration is not None:
        return utcnow() + _seconds(duration)
    return None if until is None else _instant(until)


def _seconds(text: str) -> timedelta:
    found = _DURATION.fullmatch(text.strip().lower())
    try:
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
        length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        _ = utcnow() + length
    except (OverflowError, ValueError):
        # `int` refuses more than some thousand digits.
        raise ValueError(f"--for {text[:20]} is too long; write 90s, 30m, 2h, 1h30m or 1d") from None
    if not length:
        raise ValueError(f"--for {text!r} is no duration; write 90s, 30m, 2h, 1h30m or 1d")
    return length


def _instant(text: str) -> datetime:
    """Read a time of day, the next one, or a date and time; local where no zone is given."""
    try:
        if re.fullmatch(r"\d?\d:\d\d", text):
            today = datetime.combine(datetime.now().astimezone(), time.fromisoformat(text.zfill(5)))
            # As clocks go back, a time of day comes twice.
            times = [today, today.replace(fold=1), today + timedelta(days=1)]
            return next(local for each in times if (local := each.astimezone()) > utcnow())
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ValueError(f"--until {text!r} is no time; write 15:30, 2030-01-31T15:30 or 2030-01-31T15:30Z") from None


def _drain(seconds: float | None, *, no_drain: bool) -> float | None:
    if no_drain and seconds is not None:
        raise ValueError("--drain and --no-drain contradict each other; give one of them")
    return None if no_drain else DRAIN if seconds is None else seconds


# What is answered


async def _tell(console: _Console, maintenance: Maintenance, *, still: bool = False, list_workers: bool = False) -> int:
    """Answer with what is true now, and give the exit code for it.

    Raises:
        BackendError: It cannot be told.
    """
    status, causes, workers = await _asked(maintenance)
    details = _details(maintenance, status, causes, workers) if status.active or not still else []
    lines = [_headline(console, status, still=still), *(f"  {_harmless(line)}" for line in details)]
    data = {
        **_STATUS.dump_python(status, mode="json"),
        "scope": maintenance.scope,
        "backend": _place(maintenance),
        "closed_by": [
            {"kind": type(cause).__name__.lower(), **_CAUSE.dump_python(cause, mode="json")} for cause in causes
        ],
    }
    if workers is not None:
        data |= {"workers": len(workers), "busy": sum(worker.busy for worker in workers)}
    if list_workers:
        data["attached"] = [TypeAdapter(Worker).dump_python(worker, mode="json") for worker in workers or ()]
        lines += [_harmless(_line_of(worker)) for worker in workers or ()]
    console.answer("\n".join(lines), data)
    return CLOSED if status.active else OPEN


async def _asked(maintenance: Maintenance) -> tuple[MaintenanceStatus, list[Cause], tuple[Worker, ...] | None]:
    """Ask the backend now, not what was known last."""
    try:
        with anyio.fail_after(ASK_TIMEOUT):
            state = await maintenance.snapshot.read()
            workers = await maintenance.workers() if isinstance(maintenance.backend, DrainStore) else None
    except TimeoutError:
        raise BackendError(maintenance.snapshot.name, f"no answer within {ASK_TIMEOUT:g} s") from None
    now, settings = utcnow(), maintenance.settings
    status = state.at(now, message=settings.message, retry_after=settings.retry_after)
    return status, state.active_causes(now), None if isinstance(maintenance.backend, EnvVarBackend) else workers


def _headline(console: _Console, status: MaintenanceStatus, *, still: bool) -> str:
    word = "open" if not status.active else "closing" if status.phase == "closing" else "closed"
    mode = f" ({status.mode})" if status.active else ""
    return f"{'still ' if still and status.active else ''}{console.coloured(word)}{mode}"


def _details(
    maintenance: Maintenance, status: MaintenanceStatus, causes: list[Cause], workers: tuple[Worker, ...] | None
) -> list[str]:
    rows = [
        ("message", status.message),
        ("until", None if status.until is None else _local(status.until)),
        *(("by", _line_of_cause(cause)) for cause in causes),
        ("next", None if status.next_window is None else _line_of_cause(status.next_window)),
        ("workers", None if workers is None else _line_of_workers(workers)),
        ("state", f"{_place(maintenance)}, revision {status.revision}"),
    ]
    return [f"{name:<8} {value}" for name, value in rows if value is not None]


def _line_of_cause(cause: Cause) -> str:
    by = f" by {cause.by}" if cause.by else ""
    if isinstance(cause, Window):
        return f"window {cause.id}{by}: {_local(cause.start)} to {_local(cause.end)}"
    if isinstance(cause, Switch):
        return f"the switch{by}, since {_local(cause.since)}"
    kept = {"orphan": ", failed and kept: `off` ends it", "closing": ", draining", "closed": ""}[cause.phase]
    return f"hold {cause.id}{by}, since {_local(cause.since)}{kept}"


def _line_of_workers(workers: tuple[Worker, ...]) -> str:
    if not workers:
        return "0 attached: is it the same state (path, URL, scope) as the service's?"
    pids, hosts = places(worker for worker in workers if worker.busy)
    return f"{len(workers)} attached, {len(pids)} busy{named(pids, hosts)}"


def _line_of(worker: Worker) -> str:
    known = {
        key: value for key, value in asdict(worker).items() if value is not None and key not in {"busy", "last_beat"}
    }
    seen = "" if worker.last_beat is None else f" last_beat={_local(worker.last_beat)}"
    return f"    {'busy' if worker.busy else 'idle'} {' '.join(f'{key}={value}' for key, value in known.items())}{seen}"


def _place(maintenance: Maintenance) -> str:
    """Name where the state is, without credentials."""
    backend = maintenance.backend
    if isinstance(backend, LocalFileBackend):
        return f"file:{backend.file_path}"
    return getattr(backend, "place", maintenance.snapshot.name)


def _harmless(text: str) -> str:
    """Give `text` so that it does not steer the terminal: a document written by hand may say anything."""
    return "".join(char if category(char) != "Cc" or char in "\n\t" else repr(char)[1:-1] for char in text)


def _local(instant: datetime) -> str:
    return instant.astimezone().isoformat(" ", "seconds")


def _reason(error: Exception) -> str:
    """Give an error's text, in the words of the command line."""
    if isinstance(error, DrainTimeout):
        who = f"{error.busy} of {error.workers} workers still busy{named(error.pids, error.hosts)}"
        return f"{who} after {error.seconds:g} s, so the command was not started; wait longer with --drain SECONDS"
    if isinstance(error, NoWorkers):
        return (
            f"{error.found} workers attached, at least {error.wanted} expected (--min-workers): is it the same backend "
            "(path, URL, scope) as the service's? A worker is attached from its lifespan, else from its first request "
            "on; before that, say --min-workers 0"
        )
    if isinstance(error, DrainUnsupported):
        return f"it cannot be promised that nothing is running: {error.reason}; --no-drain only closes"
    return str(error)


def _coloured(word: str, stream: TextIO) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return word if plain else f"\x1b[{_COLOURS[word]}m{word}\x1b[0m"


# How far `run` is


class _Progress:
    """Tells of the steps of `run` on stderr. It never raises, for nothing may keep a hold from its end.

    Args:
        as_json: One JSON object a line, for programs.
        command: What is run, for people.
    """

    def __init__(self, *, as_json: bool, command: str) -> None:
        self._as_json = as_json
        self._command = command
        self._rewrites = not as_json and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __call__(self, event: str, /, **data: Any) -> None:
        """Tell of one step."""
        line = json.dumps({"event": event, **data}) if self._as_json else self._line(event, data)
        # The line on who is busy is written over on a terminal.
        begin = "\r\x1b[K" if self._rewrites else ""
        end = "" if self._rewrites and event == "draining" else "\n"
        if line:
            with suppress(OSError):
                print(begin + line, end=end, file=sys.stderr, flush=True)

    def _line(self, event: str, data: dict[str, Any]) -> str:
        said = {"command": self._command, "named": named(data.get("pids", ()), data.get("hosts", ())), **data}
        return _STEPS.get(event, "").format(**said)
