"""Every setting once: its name, type, default, unit and meaning.

Flags win over the environment (`UNDERCROFT_*`, nested with two underscores), that over the TOML file.
"""

import ipaddress
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from undercroft.buffers.settings import BufferSettings
from undercroft.errors import SettingsError

ENV_PREFIX = "UNDERCROFT_"

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Bytes = Annotated[ByteSize, Field(ge=1)]

_DEFAULT = BufferSettings()


class Section(BaseModel):
    """A group of settings; unknown names in it are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GeneralBufferSection(Section):
    """How every buffer writes to SQLite."""

    flush_interval_ms: Count = Field(
        _DEFAULT.flush_interval_ms, description="age of the oldest pending event at which it is written (ms)"
    )
    flush_timeout_ms: Count = Field(
        _DEFAULT.flush_timeout_ms, description="how long an explicit flush may take (ms)"
    )
    commit_timeout_ms: Count = Field(
        _DEFAULT.commit_timeout_ms,
        description="how long a client waits for its commit before it is told to come back (ms)",
    )
    enqueue_timeout_ms: NotNegative = Field(
        _DEFAULT.enqueue_timeout_ms, description="how long an event waits for room in a full buffer (ms)"
    )
    max_batch_size: Count = Field(
        _DEFAULT.max_batch_size, description="rows in one statement; so many pending rows start a flush"
    )
    max_pending_rows: Count = Field(
        _DEFAULT.max_pending_rows, description="bound on rows that are not committed yet"
    )
    max_pending_bytes: Bytes = Field(
        ByteSize(_DEFAULT.max_pending_bytes), description="bound on their size (bytes, or like `128MiB`)"
    )
    retry_max_attempts: NotNegative = Field(
        _DEFAULT.retry_max_attempts,
        description="retries of a locked database before the rows wait for the next tick",
    )
    retry_base_delay_ms: NotNegative = Field(
        _DEFAULT.retry_base_delay_ms, description="delay before the first retry; doubles with each (ms)"
    )
    retry_max_delay_ms: NotNegative = Field(
        _DEFAULT.retry_max_delay_ms, description="longest delay between retries (ms)"
    )
    shutdown_ms: NotNegative = Field(
        _DEFAULT.shutdown_ms, description="how long a stop drains before it spills to a file (ms)"
    )


class BufferSection(Section):
    """The same names once more for a single buffer; what is None is as in `buffers`."""

    flush_interval_ms: Count | None = None
    flush_timeout_ms: Count | None = None
    commit_timeout_ms: Count | None = None
    enqueue_timeout_ms: NotNegative | None = None
    max_batch_size: Count | None = None
    max_pending_rows: Count | None = None
    max_pending_bytes: Bytes | None = None
    retry_max_attempts: NotNegative | None = None
    retry_base_delay_ms: NotNegative | None = None
    retry_max_delay_ms: NotNegative | None = None
    shutdown_ms: NotNegative | None = None


class BuffersSection(GeneralBufferSection):
    """How buffers write to SQLite, with overrides per buffer."""

    key_values: BufferSection = Field(BufferSection(), description="overrides for key values")
    cas_artifacts: BufferSection = Field(BufferSection(), description="overrides for artifact rows")
    s3_transfers: BufferSection = Field(BufferSection(), description="overrides for transfers")

    def of(self, name: Literal["key_values", "cas_artifacts", "s3_transfers"]) -> BufferSettings:
        """The settings of one buffer: the general ones with its overrides."""
        general = {field: getattr(self, field) for field in BufferSection.model_fields}
        return BufferSettings(**general | getattr(self, name).model_dump(exclude_none=True))


class DatabaseSection(Section):
    """SQLite."""

    synchronous: Literal["normal", "full"] = Field(
        "normal",
        description="`normal`: a commit survives the death of the process, the last ones may be lost with "
        "the power; `full`: every commit is on the medium",
    )


class DiskSection(Section):
    """Where artifacts lie."""

    limit_bytes: Bytes | None = Field(
        None,
        description="bound on all artifacts together (bytes, or like `200GB`); none: `limit_percent` alone",
    )
    limit_percent: float = Field(
        95.0, gt=0, le=100, description="bound on how full the volume may become, whoever fills it (percent)"
    )
    fsync: bool = Field(
        False, description="write each artifact through to the medium before it is acknowledged"
    )


class UploadsSection(Section):
    """Largest bodies accepted, per dialect."""

    key_value_max_bytes: Bytes = Field(ByteSize(8_000_000), description="Tuist key value entry (bytes)")
    cas_max_bytes: Bytes = Field(ByteSize(25 << 20), description="Tuist CAS artifact (bytes)")
    gradle_max_bytes: Bytes = Field(ByteSize(100 << 20), description="Gradle artifact (bytes)")
    bazel_max_bytes: Bytes = Field(ByteSize(2 << 30), description="Bazel action result or blob (bytes)")
    ccache_max_bytes: Bytes = Field(ByteSize(512 << 20), description="ccache entry (bytes)")
    read_timeout_ms: Count = Field(30_000, description="longest pause inside a body before 408 (ms)")


class HttpSection(Section):
    """The HTTP server."""

    stop_grace_ms: NotNegative = Field(
        10_000, description="how long a stop waits for requests in progress (ms)"
    )
    metrics: bool = Field(True, description="serve `/metrics`")


class LogSection(Section):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level written"
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is `console` on a terminal and `json` elsewhere"
    )


class Settings(Section):
    """The node's settings."""

    data_dir: Path = Field(Path("data"), description="directory of databases and artifacts")
    # Before `host`, whose check asks for it.
    allow_unauthenticated: bool = Field(
        False, description="listen beyond loopback although anybody who reaches the port may read and write"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(4000, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    ack: Literal["committed", "buffered"] = Field(
        "committed",
        description="when a write is acknowledged: after its commit, or at once (then a killed process loses "
        "at most one flush interval)",
    )
    buffers: BuffersSection = Field(BuffersSection(), description="write-behind buffers")
    database: DatabaseSection = Field(DatabaseSection(), description="SQLite")
    disk: DiskSection = Field(DiskSection(), description="artifact storage")
    uploads: UploadsSection = Field(UploadsSection(), description="bodies")
    http: HttpSection = Field(HttpSection(), description="HTTP server")
    log: LogSection = Field(LogSection(), description="logs")

    # A check of the field, not of the whole: that one is left out when any other setting is wrong.
    @field_validator("host")
    @classmethod
    def _loopback_only(cls, host: str, info: ValidationInfo) -> str:
        if not info.data.get("allow_unauthenticated") and not _is_loopback(host):
            raise ValueError(
                "it is reachable from other machines and the node asks nobody who they are: "
                "listen on 127.0.0.1, or set allow_unauthenticated (UNDERCROFT_ALLOW_UNAUTHENTICATED=true)"
            )
        return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(flags: Mapping[str, Any], config_file: Path | None = None) -> Settings:
    """The settings from flags, environment and file. Raises `SettingsError` naming all that is wrong."""
    problems = [f"{name} in the environment is no setting" for name in _unknown_environment()]
    values: dict[str, Any] = {}
    try:
        values = _from_file(config_file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problems.append(f"config file {config_file}: {reason}")
    values = _merged(_merged(values, _from_environment()), flags)
    settings: Settings | None = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_problem(dict(detail)) for detail in error.errors()]
    if problems or settings is None:
        raise SettingsError(f"{len(problems)} wrong setting(s): " + "; ".join(problems))
    return settings


def _from_file(config_file: Path | None) -> dict[str, Any]:
    return {} if config_file is None else tomllib.loads(config_file.read_text())


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


def _problem(detail: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{name} is no setting"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{name} = {detail['input']!r}: {message}" if name else message


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
