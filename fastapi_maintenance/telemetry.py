"""What OpenTelemetry is told, in a process that uses it. Nothing is imported where it is absent."""

import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from starlette.types import Scope

from fastapi_maintenance.state import Mode

METER = "fastapi_maintenance"

_SERVER = "fastapi.telemetry"
"""Key of the ASGI scope under which FastAPI (from 0.145) keeps the request's server span."""


def _loaded(name: str) -> ModuleType | None:
    """Give a part of the OpenTelemetry API that the application (or FastAPI itself) has imported."""
    return sys.modules.get(f"opentelemetry.{name}")


class Telemetry:
    """The instruments of one object.

    The server span of a refused request gets the attribute `maintenance.mode` and the event `maintenance.refused`; the
    counter `maintenance.refusals` counts by `maintenance.gate`, `maintenance.scope` and `http.route`; the gauge
    `maintenance.active` is 1 while it is closed, by `maintenance.scope`.

    Args:
        scope: The object's scope.
        mode: A method that gives the mode that is known now, without waiting; called by the thread that collects
            metrics, for as long as its object lives.
    """

    def __init__(self, scope: str, mode: Callable[[], Mode | None]) -> None:
        self._scope = scope
        self._mode = weakref.WeakMethod(mode)
        self._counter: Any = None
        self.begin()

    def begin(self) -> None:
        """Make the instruments, unless they are there or nobody has imported OpenTelemetry yet."""
        metrics: Any = _loaded("metrics")
        if metrics is None or self._counter is not None:
            return
        mode, attributes = self._mode, {"maintenance.scope": self._scope}

        def observe(options: object) -> list[Any]:  # noqa: ARG001 - what a callback gets
            ask = mode()
            return [] if ask is None else [metrics.Observation(0 if ask() is None else 1, attributes)]

        meter = metrics.get_meter(METER)
        self._counter = meter.create_counter(
            "maintenance.refusals", unit="{request}", description="Requests refused for maintenance"
        )
        meter.create_observable_gauge(
            "maintenance.active", [observe], description="1 while closed for maintenance, else 0"
        )

    def refused(self, scope: Scope, mode: Mode, gate: str, route: str | None) -> None:
        """Tell of one refusal.

        Args:
            scope: The ASGI scope.
            mode: The mode.
            gate: The kind of gate.
            route: The route's path with placeholders, where there is one.
        """
        attributes = {"maintenance.gate": gate, "maintenance.scope": self._scope}
        trace: Any = _loaded("trace")
        if trace is not None:
            # A guard runs within FastAPI's own span for dependencies, which is the current one there.
            span = getattr(scope.get(_SERVER), "span", None) or trace.get_current_span()
            if span.is_recording():
                span.set_attribute("maintenance.mode", mode)
                span.add_event("maintenance.refused", attributes)
        self.begin()
        if self._counter is not None:
            self._counter.add(1, attributes if route is None else {**attributes, "http.route": route})
