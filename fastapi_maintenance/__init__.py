"""Maintenance mode for FastAPI: close a service for a while, safely."""

from fastapi_maintenance.errors import (
    BackendError,
    BackendReadOnlyError,
    DrainIncomplete,
    DrainTimeout,
    DrainUnsupported,
    DrainWouldDeadlock,
    MaintenanceActive,
    MaintenanceError,
    NoWorkers,
)
from fastapi_maintenance.functional import (
    configure_backend,
    get_maintenance_mode,
    maintenance_mode_on,
    set_maintenance_mode,
)
from fastapi_maintenance.maintenance import Maintenance, MaintenanceRoute, get_maintenance
from fastapi_maintenance.marks import force_maintenance_mode_off, force_maintenance_mode_on
from fastapi_maintenance.middleware import MaintenanceModeMiddleware
from fastapi_maintenance.settings import MaintenanceSettings
from fastapi_maintenance.state import MaintenanceState, MaintenanceStatus

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BackendReadOnlyError",
    "DrainIncomplete",
    "DrainTimeout",
    "DrainUnsupported",
    "DrainWouldDeadlock",
    "Maintenance",
    "MaintenanceActive",
    "MaintenanceError",
    "MaintenanceModeMiddleware",
    "MaintenanceRoute",
    "MaintenanceSettings",
    "MaintenanceState",
    "MaintenanceStatus",
    "NoWorkers",
    "__version__",
    "configure_backend",
    "force_maintenance_mode_off",
    "force_maintenance_mode_on",
    "get_maintenance",
    "get_maintenance_mode",
    "maintenance_mode_on",
    "set_maintenance_mode",
]
