"""The settings in their sections: type, default, unit and meaning of each."""

from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from undercroft.buffers.settings import BufferSettings
from undercroft.s3.object_store import ObjectStoreSettings

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Bytes = Annotated[ByteSize, Field(ge=1)]

_DEFAULT = BufferSettings()

OBJECT_STORE_SCHEMES = ("s3://", "gs://", "az://", "file://")

CONTRADICTION = "contradiction"
"""The type of an error of several settings together; its message names all of them with their values."""


def _contradiction(message: str) -> PydanticCustomError:
    return PydanticCustomError(CONTRADICTION, "{message}", {"message": message})


class Section(BaseModel):
    """A group of settings; unknown names in it are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _nothing_by_name(cls, value: object, info: ValidationInfo) -> object:
        """`none` where there may be none: neither the environment nor TOML has another word for it."""
        if value == "none" and type(None) in get_args(cls.model_fields[info.field_name or ""].annotation):
            return None
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("true and false say nothing here")  # to pydantic true is a 1
        return value

    @field_validator("*")
    @classmethod
    def _path_without_nul(cls, value: object) -> object:
        # The system refuses it, too, but only when the file is opened.
        if isinstance(value, Path) and "\0" in str(value):
            raise ValueError("a path has no NUL in it")
        return value


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
    # Before `high_watermark_percent`, whose check asks for it.
    target_percent: float = Field(
        80.0, gt=0, le=100, description="where eviction ends, like `high_watermark_percent` (percent)"
    )
    high_watermark_percent: float = Field(
        90.0,
        gt=0,
        le=100,
        validate_default=True,  # against a target that was set
        description="where eviction begins: of `limit_bytes` if set, and of the volume (percent)",
    )
    eviction_interval_ms: Count = Field(
        10_000, description="how often the watermark is looked at; an upload without room asks at once (ms)"
    )
    fsync: bool = Field(
        False, description="write each artifact through to the medium before it is acknowledged"
    )

    @field_validator("high_watermark_percent")
    @classmethod
    def _between_target_and_limit(cls, high: float, info: ValidationInfo) -> float:
        target, limit = info.data.get("target_percent", high), info.data.get("limit_percent", high)
        # Each may be the one that was set, and the other the default.
        if target > high:
            raise _contradiction(
                f"disk.target_percent = {target} is above disk.high_watermark_percent = {high}: "
                "eviction begins at the watermark and ends at the target below it"
            )
        if high > limit:
            raise _contradiction(
                f"disk.high_watermark_percent = {high} is above disk.limit_percent = {limit}: "
                "uploads would be refused before eviction begins"
            )
        return high


class KeyValuesSection(Section):
    """How long key values live."""

    max_age_days: float | None = Field(
        30.0, gt=0, description="key values not asked for in so long are evicted; none: never (days)"
    )
    max_database_bytes: Bytes | None = Field(
        ByteSize(10 << 30),
        ge=1 << 20,  # an empty one takes some of that
        description="bound on `key_values.sqlite` with its WAL, kept by eviction; none: no bound "
        "(bytes, or like `10GiB`)",
    )
    eviction_interval_ms: Count = Field(60_000, description="how often both are looked at (ms)")


class ObjectStoreSection(Section):
    """The second tier."""

    url: str | None = Field(
        None,
        description="`s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or "
        "`file:///directory`; none: the node is complete on its own",
    )
    endpoint: str | None = Field(None, description="URL of an S3-compatible service, Azure or GCS emulator")
    region: str | None = Field(None, description="region of the bucket [from AWS_REGION, or us-east-1]")
    virtual_hosted_style: bool = Field(
        False, description="S3 requests name the bucket in the host instead of the path"
    )
    access_key_id: str | None = Field(
        None,
        description="S3 key id or Azure account name [from AWS_ACCESS_KEY_ID, AZURE_STORAGE_ACCOUNT_NAME]",
    )
    secret_access_key: SecretStr | None = Field(
        None, description="S3 or Azure secret [from AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_ACCOUNT_KEY]"
    )
    session_token: SecretStr | None = Field(
        None, description="of temporary S3 credentials [from AWS_SESSION_TOKEN]"
    )
    credentials_file: Path | None = Field(
        None, description="GCS service account [from GOOGLE_APPLICATION_CREDENTIALS]"
    )
    ca_file: Path | None = Field(None, description="PEM file of certificate authorities to trust as well")
    connect_timeout_ms: Count = Field(2_000, description="longest time to connect (ms)")
    first_byte_timeout_ms: Count = Field(
        2_000,
        description="how long a client waits for the store before it is told that nothing is there (ms)",
    )
    read_timeout_ms: Count = Field(10_000, description="longest pause inside an object that is fetched (ms)")
    negative_ttl_ms: NotNegative = Field(
        3_000, description="how long it is remembered that an object is absent, or the store down (ms)"
    )
    redirect: bool = Field(
        False,
        description="Tuist clients fetch what is not on disk from the store themselves, by a presigned URL",
    )
    concurrency: Count = Field(8, description="transfers at once; halved while the store asks for less")
    transfer_timeout_ms: Count = Field(600_000, description="longest time for one transfer (ms)")
    max_attempts: Count = Field(
        12, description="failures after which a transfer is parked until `undercroft transfers retry`"
    )
    retry_base_delay_ms: NotNegative = Field(
        500, description="delay before a transfer is tried again; doubles with each failure (ms)"
    )
    retry_max_delay_ms: NotNegative = Field(300_000, description="longest such delay (ms)")

    def without_effect(self) -> list[str]:
        """Dotted names of what was set in vain because there is no `url`."""
        if self.url is not None:
            return []
        fields = type(self).model_fields
        given = sorted(name for name in self.model_fields_set if getattr(self, name) != fields[name].default)
        return [f"object_store.{name}" for name in given]

    def connection(self, url: str) -> ObjectStoreSettings:
        """What the client of the store needs to know."""
        secret, token = self.secret_access_key, self.session_token
        return ObjectStoreSettings(
            url,
            endpoint=self.endpoint,
            region=self.region,
            virtual_hosted_style=self.virtual_hosted_style,
            access_key_id=self.access_key_id,
            secret_access_key=None if secret is None else secret.get_secret_value(),
            session_token=None if token is None else token.get_secret_value(),
            credentials_file=self.credentials_file,
            ca_file=self.ca_file,
            connect_timeout_ms=self.connect_timeout_ms,
        )

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(OBJECT_STORE_SCHEMES):
            raise ValueError(f"unknown scheme: {', '.join(OBJECT_STORE_SCHEMES)} are known")
        return url


class ReconcileSection(Section):
    """How fast files and rows are compared in the background."""

    files_per_second: Count = Field(500, description="most files looked at per second")
    bytes_per_second: Bytes = Field(
        ByteSize(20_000_000), description="most bytes read per second to compare digests"
    )
    pause_ms: NotNegative = Field(3_600_000, description="pause after everything was looked at (ms)")


class MaintenanceSection(Section):
    """Upkeep of the databases."""

    interval_ms: Count = Field(
        60_000, description="how often free pages are given back and statistics renewed (ms)"
    )


class UploadsSection(Section):
    """Largest bodies accepted, per dialect."""

    key_value_max_bytes: Bytes = Field(ByteSize(8_000_000), description="Tuist key value entry (bytes)")
    cas_max_bytes: Bytes = Field(ByteSize(25 << 20), description="Tuist CAS artifact (bytes)")
    gradle_max_bytes: Bytes = Field(ByteSize(100 << 20), description="Gradle artifact (bytes)")
    bazel_max_bytes: Bytes = Field(ByteSize(2 << 30), description="Bazel action result or blob (bytes)")
    ccache_max_bytes: Bytes = Field(ByteSize(512 << 20), description="ccache entry (bytes)")
    immutable: bool = Field(
        False,
        description="keep what is stored, as long as it is whole, where a tool's writes otherwise replace it",
    )
    webdav_max_bytes: Bytes = Field(ByteSize(512 << 20), description="WebDAV (sccache) artifact (bytes)")
    nx_max_bytes: Bytes = Field(ByteSize(2 << 30), description="Nx artifact (bytes)")
    module_part_max_bytes: Bytes = Field(ByteSize(10 << 20), description="part of a Tuist module (bytes)")
    module_max_bytes: Bytes = Field(ByteSize(2 << 30), description="Tuist module in all its parts (bytes)")
    multipart_idle_ms: Count = Field(
        300_000, description="how long an upload in parts may pause before it is removed (ms)"
    )
    turborepo_max_bytes: Bytes = Field(ByteSize(2 << 30), description="Turborepo artifact (bytes)")
    read_timeout_ms: Count = Field(
        30_000,
        description="longest pause inside a body before 408 (ms); all together may take longer only as long "
        "as 1,000 bytes/s come, and an hour at most",
    )


class AuthSection(Section):
    """Who may do what."""

    # Before `mode`, whose check asks for it.
    tuist_server_url: str | None = Field(
        None, description="`https://tuist.example.com`: the server that mode `tuist` asks"
    )
    mode: Literal["none", "tokens", "tuist"] = Field(
        "none",
        description="`none`: everybody may do everything; `tokens`: see `undercroft token`; `tuist`: a Tuist "
        "server says who may do what",
    )
    tuist_timeout_ms: Count = Field(
        5_000, description="longest time that the Tuist server may take for an answer (ms)"
    )
    tuist_jwt_secret: SecretStr | None = Field(
        None,
        min_length=1,
        description="what the Tuist server signs its JWTs with; with it most callers are let in without "
        "asking the server",
    )
    anonymous_read: bool = Field(False, description="without a credential everybody may read every project")
    open_metrics: bool = Field(False, description="serve `/metrics` without a credential")

    def without_effect(self) -> list[str]:
        """Dotted names of what was set in vain because the mode is not `tuist`."""
        given = sorted(name for name in self.model_fields_set if name.startswith("tuist_"))
        return [] if self.mode == "tuist" else [f"auth.{name}" for name in given]

    @field_validator("tuist_server_url")
    @classmethod
    def _server(cls, url: str | None) -> str | None:
        if url is None:
            return url
        if "@" in url:
            raise ValueError("it must have no user and no password: callers bring their own credentials")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("it must begin with https:// or http:// and a host")
        if parts.query or parts.fragment or not url.isprintable() or " " in url:
            raise ValueError("it must end with the host, a port or a path")
        return url

    @field_validator("mode")
    @classmethod
    def _server_to_ask(cls, mode: str, info: ValidationInfo) -> str:
        # A URL that is wrong is not among the data; it has a line of its own.
        if mode == "tuist" and info.data.get("tuist_server_url", "") is None:
            raise ValueError("set auth.tuist_server_url, the server to ask")
        return mode


class HttpSection(Section):
    """The HTTP server."""

    stop_grace_ms: NotNegative = Field(
        10_000, description="how long a stop waits for requests in progress (ms)"
    )
    metrics: bool = Field(True, description="serve `/metrics`")
    accel_redirect: str | None = Field(
        None,
        pattern=r"^/[a-z0-9/_-]+/$",
        description="location, like `/artifacts-of-undercroft/`, from which nginx in front sends artifacts "
        "(`X-Accel-Redirect`); nobody may reach the node past it",
    )
    max_connections: Count = Field(
        8_192,
        description="connections at once; beyond, those idle for longest are closed, then slow bodies, else "
        "the newest (per process)",
    )


class LogSection(Section):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level written"
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is `console` on a terminal and `json` elsewhere"
    )
