"""From settings and environment to a client of the provider that is meant."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias
from urllib.parse import unquote, urlsplit, urlunsplit

from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from undercroft.errors import SettingsError
from undercroft.s3.object_store import ObjectStoreSettings
from undercroft.s3.store_errors import STORE_ERRORS, read_failure

if TYPE_CHECKING:  # these exist for type checkers only
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, S3Config, S3Credential

SignsUrls: TypeAlias = S3Store | GCSStore | AzureStore

# A request may last as long as its body needs. Whoever waits for one has a deadline of its own.
ENDLESS = timedelta(days=365)

_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")
_USER_INFO = re.compile(r"//[^/]*@")


@dataclass(frozen=True, slots=True)
class Provider:
    """A client of `obstore` and what is particular about it."""

    url: str
    store: SignsUrls | LocalStore
    signer: SignsUrls | None = None
    """The same client if it can make presigned URLs."""
    digest_attribute: str | None = None
    """Metadata under which the digest of an object is kept; None if the provider keeps none."""
    directory: Path | None = None
    """Where the objects are files."""


def open_provider(settings: ObjectStoreSettings) -> Provider:
    """Makes the client. Raises `SettingsError` as `open_object_store` says."""
    scheme, separator, place = settings.url.partition("://")
    opener = _OPENERS.get(scheme) if separator else None
    if opener is None:
        known = ", ".join(f"{each}://" for each in _OPENERS)
        raise SettingsError(f"object store url {_shown(settings.url)}: unknown scheme; use {known}")
    with _blamed_on(settings.url):
        return opener(settings, place)


def _open_s3(settings: ObjectStoreSettings, place: str) -> Provider:
    bucket, prefix = _bucket_and_prefix(settings.url, place)
    endpoint = _endpoint(settings, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    region = _value(settings, "region", "AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1"
    if endpoint and settings.virtual_hosted_style:
        endpoint = _with_bucket_in_host(endpoint, bucket)
    config: S3Config = {
        "region": region,
        "virtual_hosted_style_request": settings.virtual_hosted_style,
    }
    if endpoint:
        # Both, because the environment may name the other one, and that would win.
        config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint
    store = S3Store(
        bucket,
        prefix=prefix,
        config=config,
        credential_provider=_s3_credentials(settings),
        client_options=_client_options(settings),
        retry_config={"max_retries": 0},
    )
    return Provider(settings.url, store, signer=store, digest_attribute="undercroft-sha256")


def _s3_credentials(settings: ObjectStoreSettings) -> "Callable[[], S3Credential] | None":
    """The key pair; None leaves it to obstore to ask the machine it runs on (ECS, EC2, web identity)."""
    identifier = _value(settings, "access_key_id", "AWS_ACCESS_KEY_ID")
    secret = _value(settings, "secret_access_key", "AWS_SECRET_ACCESS_KEY")
    # A token belongs to one pair: that of the environment says nothing about an id of the settings.
    variables = ("AWS_SESSION_TOKEN", "AWS_TOKEN") if settings.access_key_id is None else ()
    token = _value(settings, "session_token", *variables)
    if identifier is None and secret is None:
        return None
    if identifier is None or secret is None:
        missing, given = ("access_key_id", "secret_access_key")[:: 1 if identifier is None else -1]
        _refuse(settings.url, f"{given} is given without {missing}; set both or neither")
    credential: S3Credential = {
        "access_key_id": identifier,
        "secret_access_key": secret,
        "token": token,
        "expires_at": None,
    }
    return lambda: credential


def _open_gcs(settings: ObjectStoreSettings, place: str) -> Provider:
    bucket, prefix = _bucket_and_prefix(settings.url, place)
    config: GCSConfig = {}
    credentials = settings.credentials_file or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if credentials:
        _readable(settings.url, "credentials_file", Path(credentials))
        config["application_credentials"] = str(credentials)
    if endpoint := _endpoint(settings):
        config["base_url"] = endpoint
    store = GCSStore(
        bucket,
        prefix=prefix,
        config=config,
        client_options=_client_options(settings),
        retry_config={"max_retries": 0},
    )
    return Provider(settings.url, store, signer=store, digest_attribute="undercroft-sha256")


def _open_azure(settings: ObjectStoreSettings, place: str) -> Provider:
    container, prefix = _bucket_and_prefix(settings.url, place)
    account = _value(settings, "access_key_id", "AZURE_STORAGE_ACCOUNT_NAME")
    key = _value(settings, "secret_access_key", "AZURE_STORAGE_ACCOUNT_KEY")
    if account is None:
        _refuse(settings.url, "the account is not known; set access_key_id to its name")
    config: AzureConfig = {"account_name": account}
    if key is not None:
        config["account_key"] = key
    if endpoint := _endpoint(settings):
        config["endpoint"] = endpoint
    store = AzureStore(
        container,
        prefix=prefix,
        config=config,
        client_options=_client_options(settings),
        retry_config={"max_retries": 0},
    )
    # Azure takes only names that C# would take, so no hyphen.
    return Provider(settings.url, store, signer=store, digest_attribute="undercroft_sha256")


def _open_directory(settings: ObjectStoreSettings, place: str) -> Provider:
    if not place.startswith("/") or not place.strip("/"):
        _refuse(settings.url, "not an absolute path of a directory; write file:///directory")
    directory = Path(unquote(place))
    try:
        # Never its parents: where a file system is not mounted they would be made on another, and filled.
        directory.mkdir(exist_ok=True)
    except FileNotFoundError:
        _refuse(
            settings.url,
            f"{directory.parent} is not there; mount or make it, only the last directory is made by the node",
        )
    except OSError as error:
        _refuse(settings.url, f"the directory cannot be made: {error.strerror}; make it, or name another")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        _refuse(settings.url, "the directory may not be read and written by this user; change its rights")
    return Provider(settings.url, LocalStore(directory), directory=directory)


_OPENERS: dict[str, Callable[[ObjectStoreSettings, str], Provider]] = {
    "s3": _open_s3,
    "gs": _open_gcs,
    "az": _open_azure,
    "file": _open_directory,
}


def _bucket_and_prefix(url: str, place: str) -> tuple[str, str | None]:
    bucket, _, prefix = place.partition("/")
    if not bucket:
        _refuse(url, "names no bucket; write it after the scheme, as in s3://bucket/prefix")
    if not _BUCKET.fullmatch(bucket):
        _refuse(url, "what follows the scheme is no name of a bucket; write s3://bucket/prefix")
    prefix = prefix.strip("/")
    if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
        _refuse(url, "the prefix has an empty, . or .. component; leave it out")
    return bucket, prefix or None


def _endpoint(settings: ObjectStoreSettings, *variables: str) -> str | None:
    endpoint = _value(settings, "endpoint", *variables)
    if endpoint is None:
        return None
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    # obstore would take anything, and panic at the first request.
    if not sound or not endpoint.isascii() or " " in endpoint:
        _refuse(settings.url, f"endpoint {_shown(endpoint)} is no URL; write it as in http://host:9000")
    return endpoint.rstrip("/")


def _with_bucket_in_host(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    if parts.netloc.startswith(f"{bucket}."):
        return endpoint
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


def _client_options(settings: ObjectStoreSettings) -> "ClientConfig":
    options: ClientConfig = {
        "allow_http": True,
        "timeout": ENDLESS,
        "connect_timeout": timedelta(milliseconds=settings.connect_timeout_ms),
    }
    if settings.ca_file is not None:
        options["root_certificate"] = _readable(settings.url, "ca_file", settings.ca_file)
        if b"-----BEGIN CERTIFICATE-----" not in options["root_certificate"]:
            _refuse(settings.url, f"ca_file {settings.ca_file} holds no certificate; name a PEM file")
    return options


def _readable(url: str, what: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        _refuse(url, f"{what} {file} cannot be read: {error.strerror}; name a file this user can read")


def _value(settings: ObjectStoreSettings, name: str, *variables: str) -> str | None:
    """The setting, else the first of the variables that is set, without space around it.

    Values read from files often end with a newline, and obstore panics on one.
    """
    given = filter(None, (getattr(settings, name), *map(os.environ.get, variables)))
    value: str | None = next((text for each in given if (text := each.strip())), None)
    if value is not None and not value.isprintable():
        _refuse(settings.url, f"{name} contains a control character; remove it")
    return value


@contextmanager
def _blamed_on(url: str) -> Iterator[None]:
    """What obstore does not accept. Its own words may quote what it was given, so they stay out."""
    try:
        yield
    except (*STORE_ERRORS, ValueError) as error:
        reason = read_failure(error).code or type(error).__name__
        raise SettingsError(
            _complaint(url, f"the settings are not accepted ({reason}): {_hint(error)}")
        ) from None


def _hint(error: Exception) -> str:
    text = str(error)
    for sign, hint in _HINTS.items():
        if sign in text:
            return hint
    return "check credentials, certificates and endpoint"


_HINTS = {
    "service account file": "credentials_file is no service account in JSON",
    "DecodeCredentials": "credentials_file is no service account in JSON",
    "InvalidCertificate": "ca_file holds a damaged certificate",
    "InvalidAccessKey": "secret_access_key is not the base64 of an Azure account key",
}


def _refuse(url: str, why: str) -> NoReturn:
    raise SettingsError(_complaint(url, why))


def _complaint(url: str, why: str) -> str:
    return f"object store {_shown(url)}: {why}"


def _shown(url: str) -> str:
    """The URL without what somebody may have written before an @."""
    return _USER_INFO.sub("//…@", url)
