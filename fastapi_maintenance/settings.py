"""What the environment configures, and the one place that turns a backend URL into a backend."""

import importlib
import inspect
import json
import os
import re
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, IPvAnyNetwork, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from fastapi_maintenance.backends import EnvVarBackend, MemoryBackend, file_backend, redis_backend
from fastapi_maintenance.errors import BackendError
from fastapi_maintenance.state import checked_message

if TYPE_CHECKING:
    from fastapi_maintenance.backends.redis.urls import Target

PREFIX = "FASTAPI_MAINTENANCE_"
DEFAULT_SCOPE = "default"

_SCOPE = r"[a-z][a-z0-9_]*"
_HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RIGHT = {"retry_after": "whole seconds, at least 1, or none for no header", "status_code": "a status from 400 to 599"}
"""What a number may be, where its type says only a part of it."""

_BACKENDS = "env, memory, file:PATH, redis://HOST or module:attribute"


def _network(value: object) -> object:
    """Read one network; a number would be one to the standard library, too."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no network: write it as text")  # noqa: TRY004 - pydantic wants this one
    try:
        return ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}; write a network like 10.0.0.0/8, or one address") from None


class _Names:  # noqa: PLW1641 - nobody hashes it
    """How the user named each field that does not come from its plain variable; no part of what settings are."""

    def __init__(self, given: dict[str, str] | None = None) -> None:
        self.given = given or {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Names)


class MaintenanceSettings(BaseSettings):
    """How maintenance is configured: `FASTAPI_MAINTENANCE_` and a field's name in upper case is its variable.

    A list is written as JSON or comma-separated. No `.env` file is read unless asked (`_env_file=…`).

    Raises:
        ValueError: A value is wrong; the error names the variable or the field and says what would be right.
        TypeError: A keyword is no setting.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True, defer_build=True
    )

    backend: str = "env"
    """Where the state is kept: `env`, `memory`, `file:PATH`, `redis://HOST` or `module:attribute`."""

    message: str = "Service temporarily unavailable due to maintenance"
    """What to tell people where the state has no message."""

    retry_after: Annotated[int, Field(ge=1)] | None = 60
    """Seconds to name in `Retry-After` when the end is unknown; empty or `none`: no header."""

    retry_after_jitter: int = Field(default=0, ge=0)
    """Seconds, of which a random part is added to each `Retry-After`, so that clients do not come back in one wave."""

    status_code: int = Field(default=503, ge=400, le=599)
    """The status of a refusal (RFC 9110 section 15.6.4 says 503)."""

    exempt_paths: Annotated[tuple[str, ...], NoDecode] = ()
    """Paths that stay open: exact (`/robots.txt`), or with all below them (`/health/*`)."""

    exempt_ips: Annotated[tuple[Annotated[IPvAnyNetwork, BeforeValidator(_network)], ...], NoDecode] = ()
    """Networks (CIDR) whose clients are let through. Only the connection's own address counts, no forwarded header."""

    exempt_docs: bool = True
    """Whether the documentation endpoints of the application stay open."""

    bypass_secret: SecretStr | None = None
    """A request that carries it in `bypass_header` is let through."""

    bypass_header: str = "Maintenance-Bypass"
    """The header for `bypass_secret`."""

    refresh_interval: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Seconds between two questions to a user's store."""

    event_streams: Literal["refuse", "retry"] = "refuse"
    """What an `EventSource` gets: the 503, after which it never connects again, or a stream that says `retry:`."""

    page_template: Path | None = None
    """A `string.Template` file for the HTML page; the built-in page when left out."""

    on_backend_error: Literal["open", "closed"] = "open"
    """What to be while nothing is known of the state."""

    read_timeout: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Seconds that a store may take to answer."""

    _names: "_Names" = PrivateAttr(default_factory=_Names)

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in type(self).model_fields and name not in _sources():
                raise TypeError(f"unknown setting {name!r}: use {', '.join(type(self).model_fields)}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(_readable(error, values, PREFIX)) from None
        self._names = _Names({name: name for name in values})

    @classmethod
    def for_scope(cls, scope: str) -> Self:
        """Read the environment for `scope`: `FASTAPI_MAINTENANCE_<SCOPE>_<FIELD>`, else the plain variable.

        Raises:
            ValueError: The scope's name or a value is wrong.
        """
        if not isinstance(scope, str) or not re.fullmatch(_SCOPE, scope):
            raise ValueError(f"{scope!r} is no scope name: a small letter, then small letters, digits and _")
        if scope == "gate":
            raise ValueError("'gate' is no scope name: PATH.gate is for the locks of the state file")
        if scope == DEFAULT_SCOPE:
            return cls()
        prefix = scope_prefix(scope)
        own = EnvSettingsSource(cls, env_prefix=prefix)()
        try:
            settings = cls(**own)
        except ValueError as error:
            raise ValueError(_named_for_scope(str(error), own, prefix)) from None
        if "backend" not in own and _is_object_url(settings.backend):
            raise ValueError(
                f"{PREFIX}BACKEND={settings.backend} names one object, which scope {scope!r} cannot share: "
                f"set {prefix}BACKEND as well"
            )
        settings._names = _Names({field: f"{prefix}{field.upper()}" for field in own})
        return settings if "backend" in own else settings.with_state_of(scope)

    @contextmanager
    def naming(self, field: str) -> Generator[None]:
        """Let errors of the block name `field` as the user wrote it: the argument, or the variable.

        Raises:
            ValueError: The block raised it; `TypeError` and `BackendError` likewise. A kind of `BackendError` that is
                not ours stays as it is.
        """
        place = f"(setting {self._names.given.get(field, f'{PREFIX}{field.upper()}')})"
        try:
            yield
        except BackendError as error:
            if type(error) is not BackendError:
                raise
            raise BackendError(error.backend, f"{error.reason} {place}") from error.__cause__ or error
        except (ValueError, TypeError) as error:
            kind = ValueError if isinstance(error, ValueError) else TypeError
            raise kind(f"{error} {place}") from error.__cause__ or error

    def with_state_of(self, scope: str) -> Self:
        """Keep the state of `scope` apart from that of others with the same settings: `file:PATH` is `PATH.scope`."""
        apart = self.backend.endswith(f".{scope}") or not self.backend.startswith("file:")
        if scope == DEFAULT_SCOPE or apart:
            return self
        return self.model_copy(update={"backend": f"{self.backend}.{scope}"})

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Give what `repr` shows: a URL without its credentials."""
        for name, value in super().__repr_args__():
            target = _redis_target(value) if name == "backend" else None
            yield name, value if target is None else target.name

    @field_validator("exempt_paths", "exempt_ips", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Read a list as JSON or comma-separated."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f'{error}; write JSON like ["a", "b"], or a, b') from None
        return [item.strip() for item in value.split(",") if item.strip()]

    @field_validator("exempt_paths")
    @classmethod
    def _check_paths(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if not path.startswith("/") or "*" in path.removesuffix("/*"):
                raise ValueError(f"{path!r} is no path: write /exact/path, or /path/* for it and all below")
        return paths

    @field_validator("retry_after", mode="before")
    @classmethod
    def _read_none(cls, value: object) -> object:
        return None if isinstance(value, str) and value.strip().lower() in {"", "none"} else value

    @field_validator("message")
    @classmethod
    def _check_message(cls, message: str) -> str:
        checked_message(message)
        return message

    @field_validator("page_template", mode="before")
    @classmethod
    def _empty_template_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("bypass_secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        """Read an empty secret as none, for an empty header must open nothing."""
        try:
            return secret if secret is not None and secret.get_secret_value().encode() else None
        except UnicodeEncodeError:
            raise ValueError("it is not valid UTF-8") from None

    @field_validator("bypass_header")
    @classmethod
    def _check_header(cls, name: str) -> str:
        if not re.fullmatch(_HEADER_NAME, name):
            raise ValueError(f"{name!r} is no header name (RFC 9110 section 5.1)")
        return name

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, url: str) -> str:
        here = url in {"env", "memory"} or (url.startswith("file:") and url != "file:")
        if here or _redis_target(url) is not None or _is_object_url(url):
            return url
        # A malformed URL may hold a password, so the error does not repeat it.
        raise ValueError(f"unknown backend: use {_BACKENDS}")


@cache
def _sources() -> frozenset[str]:
    """Give what pydantic-settings itself takes: `_env_file` and others."""
    return frozenset(name for name in inspect.signature(BaseSettings).parameters if name.startswith("_"))


def scope_prefix(scope: str) -> str:
    """Give the prefix of the variables of `scope`."""
    return PREFIX if scope == DEFAULT_SCOPE else f"{PREFIX}{scope.upper()}_"


def mode_variable(scope: str) -> str:
    """Give the variable that is the state of the environment backend of `scope`."""
    return f"{scope_prefix(scope)}MODE"


class _Shared:
    """Backends made from URLs, so that two objects made from the same environment always agree."""

    backends: dict[tuple[str, str], object] = {}  # noqa: RUF012 - shared on purpose
    lock = threading.RLock()


def backend_from_url(url: str, scope: str) -> object:
    """Give the backend that `url` names for `scope`, the same object each time.

    Raises:
        ValueError: The environment's mode is wrong, or the object cannot be imported.
        BackendError: The backend cannot be made.
    """
    if url.startswith("file:"):
        url = f"file:{os.path.abspath(url.removeprefix('file:'))}"  # noqa: PTH100 - Path would resolve nothing more
    with _Shared.lock:
        key = (url, scope)
        if url == "env" or key not in _Shared.backends:
            # The environment is checked anew by each object that is made from it.
            made = _make_backend(url, scope)
            _Shared.backends.setdefault(key, made)
        return _Shared.backends[key]


def _make_backend(url: str, scope: str) -> object:
    if url == "env":
        return EnvVarBackend(mode_variable(scope))
    if url == "memory":
        return MemoryBackend()
    if url.startswith("file:"):
        return file_backend()(url.removeprefix("file:"))
    if _redis_target(url) is not None:
        return redis_backend()(url, scope=scope)
    return _imported(url)


def _redis_target(url: str) -> "Target | None":
    """Give where a Redis URL leads, `None` for another one; a malformed one is a `ValueError`."""
    if url in {"env", "memory"} or url.startswith("file:"):
        return None
    from fastapi_maintenance.backends.redis import urls  # noqa: PLC0415 - most do without

    return urls.target_of(url) if urls.is_redis_url(url) else None


def _is_object_url(url: str) -> bool:
    module, _, attribute = url.partition(":")
    return module != "file" and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def _imported(url: str) -> object:
    module, _, attribute = url.partition(":")
    with _telling(f"backend {url} cannot be imported", f"use {_BACKENDS}"):
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    if isinstance(found, ModuleType):
        raise ValueError(f"backend {url} is a module; name an object in it")  # noqa: TRY004 - what the environment says
    with _telling(f"backend {url} cannot be made", "name an object of it instead"):
        return found() if isinstance(found, type) else found


@contextmanager
def _telling(problem: str, advice: str) -> Generator[None]:
    """Say what failed, whatever code of the user raised, and what to do; a `BackendError` says it by itself."""
    try:
        yield
    except BackendError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{problem}: {type(error).__name__}: {error}; {advice}") from error


def _readable(error: ValidationError, given: dict[str, Any], prefix: str) -> str:
    """Say what is wrong, by the name under which the user wrote it: the argument, or the variable."""
    problems: list[str] = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        field, *rest = (str(part) for part in problem["loc"])
        name = field if field in given else f"{prefix}{field.upper()}"
        place = f" (item {rest[0]})" if rest and rest[0].isdigit() else ""
        right = f" (give {_RIGHT[field]})" if field in _RIGHT else ""
        problems.append(f"{name}{place}: {problem['msg'].removeprefix('Value error, ')}{right}")
    return "; ".join(problems)


def _named_for_scope(message: str, own: dict[str, Any], prefix: str) -> str:
    """Name the scope's variables in an error that names their fields."""
    for field in own:
        message = re.sub(rf"(^|; ){field}\b", rf"\g<1>{prefix}{field.upper()}", message)
    return message
