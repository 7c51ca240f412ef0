"""What OpenTelemetry is told, in a process that uses it. Nothing is imported where it is absent."""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from starlette.types import Scope

from fastapi_maintenance.state import Mode

METER = "fastapi_maintenance"

_SERVER = "fastapi.telemetry"
"""Key of the ASGI scope under which FastAPI (from 0.145) keeps the request's server span."""

_METRICS, _TRACE, _CONTEXT = "opentelemetry.metrics", "opentelemetry.trace", "opentelemetry.context"
"""Parts of the OpenTelemetry API, if the application (or FastAPI itself) has imported them."""


class _Observed:
    """What the one gauge of the process tells of: a second gauge of its name would not be asked."""

    telemetries: "WeakSet[Telemetry]" = WeakSet()  # noqa: RUF012 - shared on purpose
    lock = threading.Lock()


def _observe(options: object) -> Iterable[Any]:  # noqa: ARG001 - what a callback gets
    """Tell of each scope whether any object of it is closed."""
    metrics: Any = sys.modules[_METRICS]
    with _Observed.lock:
        telemetries = list(_Observed.telemetries)
    closed: dict[str, bool] = {}
    for telemetry in telemetries:
        closed[telemetry.scope] = closed.get(telemetry.scope, False) or telemetry.mode() is not None
    return [metrics.Observation(int(value), {"maintenance.scope": scope}) for scope, value in closed.items()]


class Telemetry:
    """The instruments of one object.

    The server span of a refused request gets the attribute `maintenance.mode` and the event `maintenance.refused`; the
    counter `maintenance.refusals` counts by `maintenance.gate`, `maintenance.scope` and `http.route`; the gauge
    `maintenance.active` is 1 while it is closed, by `maintenance.scope`.

    Args:
        scope: The object's scope.
        mode: Gives the mode that is known now, without waiting; called by the thread that collects metrics.
    """

    def __init__(self, scope: str, mode: Callable[[], Mode | None]) -> None:
        self.scope = scope
        self.mode = mode
        self._counter: Any = None
        self.begin()

    def begin(self) -> None:
        """Make the instruments, unless they are there or nobody has imported OpenTelemetry yet."""
        if self._counter is not None:
            return
        metrics: Any = sys.modules.get(_METRICS)
        if metrics is None:
            return
        with _Observed.lock:
            _Observed.telemetries.add(self)
        meter = metrics.get_meter(METER)
        meter.create_observable_gauge(
            "maintenance.active", [_observe], description="1 while closed for maintenance, else 0"
        )
        self._counter = meter.create_counter(
            "maintenance.refusals", unit="{request}", description="Requests refused for maintenance"
        )

    def refused(self, scope: Scope, mode: Mode, gate: str, route: str | None) -> None:
        """Tell of one refusal.

        Args:
            scope: The ASGI scope.
            mode: The mode.
            gate: The kind of gate.
            route: The route's path with placeholders, where there is one.
        """
        trace: Any = sys.modules.get(_TRACE)
        context: Any = sys.modules.get(_CONTEXT)
        # In an empty context there is no current span, and asking for it takes longer.
        if trace is not None and (_SERVER in scope or context is None or context.get_current()):
            # A guard runs within FastAPI's own span for dependencies, which is the current one there.
            span = getattr(scope.get(_SERVER), "span", None) or trace.get_current_span()
            if span.is_recording():
                span.set_attribute("maintenance.mode", mode)
                span.add_event("maintenance.refused", {"maintenance.gate": gate, "maintenance.scope": self.scope})
        if self._counter is None:
            self.begin()
        if self._counter is not None:
            attributes = {"maintenance.gate": gate, "maintenance.scope": self.scope}
            if route is not None:
                attributes["http.route"] = route
            self._counter.add(1, attributes)
