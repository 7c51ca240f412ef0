"""What OpenTelemetry is told, in a process that uses it. Nothing is imported where it is absent."""

import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastapi_maintenance.state import Mode

METER = "fastapi_maintenance"


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
        mode: Gives the mode that is known now, without waiting; called by the thread that collects metrics.
    """

    def __init__(self, scope: str, mode: Callable[[], Mode | None]) -> None:
        self._scope = scope
        self._counter: Any = None
        metrics: Any = _loaded("metrics")
        if metrics is not None:
            observed = weakref.WeakMethod(mode) if hasattr(mode, "__self__") else lambda: mode

            def observe(options: object) -> list[Any]:  # noqa: ARG001 - what a callback gets
                ask = observed()
                attributes = {"maintenance.scope": scope}
                return [] if ask is None else [metrics.Observation(0 if ask() is None else 1, attributes)]

            meter = metrics.get_meter(METER)
            meter.create_observable_gauge(
                "maintenance.active", [observe], description="1 while closed for maintenance, else 0"
            )
            self._counter = meter.create_counter(
                "maintenance.refusals", unit="{request}", description="Requests refused for maintenance"
            )

    def refused(self, mode: Mode, gate: str, route: str | None) -> None:
        """Tell of one refusal, within the request's span."""
        trace: Any = _loaded("trace")
        if trace is not None:
            span = trace.get_current_span()
            if span.is_recording():
                span.set_attribute("maintenance.mode", mode)
                span.add_event("maintenance.refused", {"maintenance.gate": gate, "maintenance.scope": self._scope})
        if self._counter is not None:
            attributes = {"maintenance.gate": gate, "maintenance.scope": self._scope}
            self._counter.add(1, attributes if route is None else {**attributes, "http.route": route})
