"""Every setting once: its name, type, default, unit and meaning.

Flags win over the environment (`UNDERCROFT_*`, nested with two underscores), that over the TOML file.
"""

import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from undercroft.errors import WrongSettingsError
from undercroft.settings_sections import (
    CONTRADICTION,
    AuthSection,
    BuffersSection,
    DatabaseSection,
    DiskSection,
    HttpSection,
    KeyValuesSection,
    LogSection,
    MaintenanceSection,
    ObjectStoreSection,
    ReconcileSection,
    Section,
    UploadsSection,
)

ENV_PREFIX = "UNDERCROFT_"

# Each has threads, connections to the databases and up to some 100 MB of its own.
MOST_WORKERS = 64

_SIZES = "write a number of bytes that is not negative, or one with a unit, like 25MiB or 200GB"

# For what pydantic says of its own.
_BETTER_WORDS = {
    "int_parsing": "not a whole number",
    "byte_size": f"not a size: {_SIZES}",
    "byte_size_unit": f"not a size, its unit is unknown: {_SIZES}",
}


class Settings(Section):
    """The node's settings."""

    data_dir: Path = Field(Path("data"), description="directory of databases and artifacts")
    # Before `host`, whose check asks for these two.
    allow_unauthenticated: bool = Field(
        False, description="listen beyond loopback although anybody who reaches the port may read and write"
    )
    auth: AuthSection = Field(AuthSection(), description="who may do what")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(4000, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    ack: Literal["committed", "buffered"] = Field(
        "committed",
        description="when a write is acknowledged: after its commit, or at once (then a killed process loses "
        "at most one flush interval)",
    )
    # Behind `ack`, which its check asks for.
    workers: int = Field(
        1, ge=1, le=MOST_WORKERS, description="processes that serve together on the data directory"
    )
    buffers: BuffersSection = Field(BuffersSection(), description="write-behind buffers")
    database: DatabaseSection = Field(DatabaseSection(), description="SQLite")
    disk: DiskSection = Field(DiskSection(), description="artifact storage")
    key_values: KeyValuesSection = Field(KeyValuesSection(), description="life of key values")
    object_store: ObjectStoreSection = Field(ObjectStoreSection(), description="second tier")
    reconcile: ReconcileSection = Field(ReconcileSection(), description="comparing files and rows")
    maintenance: MaintenanceSection = Field(MaintenanceSection(), description="upkeep of databases")
    uploads: UploadsSection = Field(UploadsSection(), description="bodies")
    http: HttpSection = Field(HttpSection(), description="HTTP server")
    log: LogSection = Field(LogSection(), description="logs")

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named(cls, data_dir: object) -> object:
        if data_dir == "":  # a variable that is not set; it would be taken for the directory one is in
            raise ValueError("it is empty: give a directory, or leave the setting out")
        return data_dir

    # A check of the field, not of the whole: that one is left out when any other setting is wrong.
    @field_validator("host")
    @classmethod
    def _loopback_only(cls, host: str, info: ValidationInfo) -> str:
        auth = info.data.get("auth")
        # Without a section there is something wrong in it, which has a line of its own.
        asks = auth is None or auth.mode != "none"
        if not asks and not info.data.get("allow_unauthenticated") and not _is_loopback(host):
            _check_that_it_resolves(host)
            raise ValueError(
                "it is no loopback address, so other machines may reach the node, which asks nobody who "
                "they are: listen on 127.0.0.1, set auth.mode, or set allow_unauthenticated "
                "(UNDERCROFT_ALLOW_UNAUTHENTICATED=true)"
            )
        return host

    @field_validator("object_store")
    @classmethod
    def _elsewhere(cls, section: ObjectStoreSection, info: ValidationInfo) -> ObjectStoreSection:
        directory, data_dir = directory_of(section.url or ""), info.data.get("data_dir")
        if directory and data_dir and directory.resolve().is_relative_to(data_dir.resolve()):
            raise ValueError(f"object_store.url is inside the data directory {data_dir}: name another place")
        return section

    @field_validator("workers")
    @classmethod
    def _committed_only(cls, workers: int, info: ValidationInfo) -> int:
        if workers > 1 and info.data.get("ack") == "buffered":
            raise ValueError(
                "with several processes a write that is not committed is known to one of them only: "
                "set ack to committed, or workers to 1"
            )
        return workers


def directory_of(url: str) -> Path | None:
    """Of an object store that is a directory; None of others."""
    scheme, _, place = url.partition("://")
    return Path(unquote(place)) if scheme == "file" else None


def url_of(host: str, port: int) -> str:
    """The address as a URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listening_url(settings: Settings) -> str:
    """Where a node with these settings is reached from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # compared only
    return url_of(host, settings.port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_that_it_resolves(host: str) -> None:
    """Who has misspelt a name is not to be told how to do without protection. Raises ValueError."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no name of a machine"
        raise ValueError(f"{reason}: give an address of this machine, or a name for one") from error


def load(flags: Mapping[str, Any], config_file: Path | None = None) -> Settings:
    """The settings from flags, environment and file. Raises `WrongSettingsError` naming all that is wrong."""
    problems = [f"{name} in the environment is no setting" for name in _unknown_environment()]
    layers: Layers = {"flag": flags, "environment": _from_environment(), "file": {}}
    try:
        layers["file"] = _from_file(config_file)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problems.append(f"config file {config_file}: {reason}")
    settings: Settings | None = None
    try:
        settings = Settings(**_merged(_merged(layers["file"], layers["environment"]), flags))
    except ValidationError as error:
        problems += [_problem(detail) + _place(detail, layers, config_file) for detail in error.errors()]
    if problems or settings is None:
        raise WrongSettingsError(problems)
    return settings


Source: TypeAlias = Literal["flag", "environment", "file", "default"]

Layers: TypeAlias = dict[Source, Mapping[str, Any]]
"""The settings each source has, as nested mappings; what comes first counts."""


def sources(flags: Mapping[str, Any], config_file: Path | None) -> dict[str, Source]:
    """Where each setting comes from, by its dotted name. Raises what reading the file raises."""
    layers: Layers = {"flag": flags, "environment": _from_environment(), "file": _from_file(config_file)}
    return {name: _source(layers, name) for name, _ in every_setting()}


def _source(layers: Layers, name: str) -> Source:
    return next((source for source, values in layers.items() if _has(values, name)), "default")


def _has(values: Mapping[str, Any], name: str) -> bool:
    first, _, rest = name.partition(".")
    if first not in values:
        return False
    return not rest or (isinstance(values[first], Mapping) and _has(values[first], rest))


def shown(value: Any) -> str | None:
    """A setting's value for people; secrets are masked (by their type), and the user in a URL."""
    return None if value is None else _without_user(str(value))


def without_effect(settings: Settings) -> list[str]:
    """Dotted names of what was set in vain because of other settings."""
    found = [*settings.object_store.without_effect(), *settings.auth.without_effect()]
    if settings.auth.mode == "none" and settings.auth.anonymous_read:
        found.append("auth.anonymous_read")
    return found


def _from_file(config_file: Path | None) -> dict[str, Any]:
    """Raises OSError, and ValueError for what is no TOML or no text."""
    if config_file is None:
        return {}
    try:
        return tomllib.loads(config_file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not valid TOML: {error}") from error


def _from_environment() -> dict[str, Any]:
    """The settings the environment has, as nested mappings like those of a file."""
    found: dict[str, Any] = {}
    for name, _ in every_setting():
        value = os.environ.get(environment_name(name))
        if value is not None:
            *sections, last = name.split(".")
            place = found
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
    return found


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; where both have a value, that of `over`."""
    both = {**under, **over}
    for name in under.keys() & over.keys():
        if isinstance(under[name], dict) and isinstance(over[name], dict):
            both[name] = _merged(under[name], over[name])
    return both


def _name(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"])


def _place(detail: ErrorDetails, layers: Layers, config_file: Path | None) -> str:
    """Where to mend it, in brackets; empty for what nobody has set, or several settings together."""
    name = "" if detail["type"] == CONTRADICTION else _name(detail)
    source = _source(layers, name) if name else "default"
    places = {"flag": "a flag", "environment": environment_name(name), "file": str(config_file)}
    return f" (set by {places[source]})" if source in places else ""


def _problem(detail: ErrorDetails) -> str:
    name = _name(detail)
    if detail["type"] == "extra_forbidden":
        return f"{name} is no setting"
    message = _BETTER_WORDS.get(detail["type"]) or str(detail["msg"]).removeprefix("Value error, ")
    if not name or detail["type"] == CONTRADICTION:
        return message
    shown = "(a secret)" if name in _secrets() else _without_user(_shown(detail["input"]))
    return f"{name} = {shown}: {message}"


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no number of thousands of digits, though TOML has them in hex
        return "(a very long number)"


def _without_user(shown: str) -> str:
    """A URL without user and password: errors end up in logs."""
    return re.sub(r"//.*@", "//(hidden)@", shown)


def _secrets() -> set[str]:
    return {name for name, field in every_setting() if "SecretStr" in str(field.annotation)}


def _unknown_environment() -> list[str]:
    known = {environment_name(name) for name, _ in every_setting()}
    return sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)


def environment_name(setting: str) -> str:
    """The environment variable of a setting given by its dotted name."""
    return ENV_PREFIX + setting.upper().replace(".", "__")


def every_setting(model: type[BaseModel] | None = None, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of each setting."""
    for name, field in (model or Settings).model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from every_setting(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field
