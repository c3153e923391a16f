"""Which store comes of which settings and environment, and what is refused.

No request was ever made to GCS or Azure by these tests: there is no emulator of either here. What is
tested of them is that a client with the right configuration is made, and what it signs.
"""

import base64
import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

import pytest
from obstore.store import AzureStore, GCSStore, S3Store

from tests.clients.installed import require
from undercroft.errors import ObjectStoreError, SettingsError
from undercroft.s3.object_store import ObjectStore, ObjectStoreSettings, open_object_store
from undercroft.s3.providers import open_provider
from undercroft.telemetry.events import Events

SECRET = "this-is-the-secret"
TOKEN = "this-is-the-token"
S3 = ObjectStoreSettings(
    "s3://bucket/pre", access_key_id="AKIAID", secret_access_key=SECRET, session_token=TOKEN
)


@pytest.fixture(autouse=True)
def _no_credentials_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)


def opened(settings: ObjectStoreSettings) -> ObjectStore:
    return open_object_store(settings, Events())


async def signed(settings: ObjectStoreSettings) -> tuple[str, dict[str, str]]:
    """Where a presigned URL leads, and its parameters."""
    url = await opened(settings).presigned_url("acc/a", 60)
    assert url is not None
    address, _, query = url.partition("?")
    return address, {name: values[0] for name, values in parse_qs(query).items()}


def refusal(settings: ObjectStoreSettings) -> str:
    with pytest.raises(SettingsError) as caught:
        opened(settings)
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    assert TOKEN not in text
    assert caught.value.__cause__ is None
    return text


def test_secrets_are_not_in_reprs() -> None:
    for shown in (repr(S3), str(S3), f"{opened(S3)!r}"):
        assert SECRET not in shown
        assert TOKEN not in shown


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://bucket", "unknown scheme; use s3://, gs://, az://, file://"),
        ("bucket/prefix", "unknown scheme"),
        ("", "unknown scheme"),
        ("s3:/bucket", "unknown scheme"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("gs://", "names no bucket"),
        ("az://", "names no bucket"),
        ("s3://my bucket/prefix", "no name of a bucket"),
        ("s3://bucket/a//b", "empty, . or .. component"),
        ("s3://bucket/../b", "empty, . or .. component"),
        ("file://relative/path", "not an absolute path"),
        ("file://./path", "not an absolute path"),
        ("file:relative", "unknown scheme"),
        ("file://", "not an absolute path"),
        ("file:///", "not an absolute path"),
        ("file:///dev/null/x", "cannot be made: Not a directory"),
        ("file:///dev/null", "cannot be made: File exists"),
        ("file:///x%00y", "not accepted"),
    ],
)
def test_urls_that_are_refused(url: str, why: str) -> None:
    text = refusal(replace(S3, url=url))
    assert url in text
    assert why in text


def test_what_is_before_an_at_sign_is_not_shown() -> None:
    assert "s3://…@bucket" in refusal(ObjectStoreSettings(f"s3://id:{SECRET}@bucket"))
    text = refusal(replace(S3, endpoint=f"ftp://id:{SECRET}@host"))
    assert "ftp://…@host" in text


@pytest.mark.parametrize("endpoint", ["localhost:9000", "http://", "ftp://host", "http://a b", "http://h:x"])
def test_endpoints_that_are_refused(endpoint: str) -> None:
    assert f"endpoint {endpoint} is no URL" in refusal(replace(S3, endpoint=endpoint))


@pytest.mark.parametrize("given", ["access_key_id", "secret_access_key"])
def test_half_a_pair_is_refused(given: str) -> None:
    missing = {"access_key_id": "secret_access_key"}.get(given, "access_key_id")
    settings = replace(S3, **{missing: None}, session_token=None)  # type: ignore[arg-type]
    assert f"{given} is given without {missing}" in refusal(settings)


def test_control_characters_are_refused() -> None:
    assert "secret_access_key contains a control character" in refusal(
        replace(S3, secret_access_key=f"{SECRET}\n{SECRET}")
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert f"ca_file {missing} cannot be read: No such file" in refusal(replace(S3, ca_file=missing))
    gcs = ObjectStoreSettings("gs://bucket", credentials_file=missing)
    assert f"credentials_file {missing} cannot be read: No such file" in refusal(gcs)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "holds no certificate"),
        (SECRET, "holds no certificate"),
        (f"-----BEGIN CERTIFICATE-----\n{SECRET}\n", "not accepted"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "damaged certificate"),
    ],
)
def test_ca_files_that_are_none(tmp_path: Path, content: str, why: str) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(content)
    assert why in refusal(replace(S3, ca_file=file))


@pytest.mark.parametrize("content", ["", SECRET, "{}", json.dumps({"type": SECRET})])
def test_service_accounts_that_are_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "account.json"
    file.write_text(content)
    refused = refusal(ObjectStoreSettings("gs://bucket", credentials_file=file))
    assert "credentials_file is no service account" in refused


def test_a_directory_is_made(tmp_path: Path) -> None:
    opened(ObjectStoreSettings(f"file://{tmp_path}/b%20c"))
    assert (tmp_path / "b c").is_dir()


def test_parents_of_a_directory_are_not_made(tmp_path: Path) -> None:
    """They may be where a file system is mounted at other times."""
    text = refusal(ObjectStoreSettings(f"file://{tmp_path}/missing/bucket"))
    assert f"{tmp_path}/missing is not there; mount or make it" in text
    assert list(tmp_path.iterdir()) == []


async def test_s3_of_the_settings() -> None:
    address, parameters = await signed(S3)
    assert address == "https://s3.us-east-1.amazonaws.com/bucket/pre/acc/a"
    assert parameters["X-Amz-Credential"].startswith("AKIAID/")
    assert "/us-east-1/s3/" in parameters["X-Amz-Credential"]
    assert parameters["X-Amz-Security-Token"] == TOKEN
    assert parameters["X-Amz-Expires"] == "60"


@pytest.mark.parametrize(
    ("endpoint", "virtual", "address"),
    [
        ("http://host:9000", False, "http://host:9000/bucket/pre/acc/a"),
        ("http://host:9000/", False, "http://host:9000/bucket/pre/acc/a"),
        ("http://host:9000", True, "http://bucket.host:9000/pre/acc/a"),
        ("https://bucket.host", True, "https://bucket.host/pre/acc/a"),
        (None, True, "https://bucket.s3.us-east-1.amazonaws.com/pre/acc/a"),
    ],
)
async def test_where_s3_is(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None, virtual: bool, address: str
) -> None:
    settings = replace(S3, endpoint=endpoint, virtual_hosted_style=virtual)
    assert (await signed(settings))[0] == address
    if endpoint is not None:  # what the environment names counts less
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
        monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", str(not virtual))
        assert (await signed(settings))[0] == address


async def test_s3_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "ENVID"),
        ("AWS_SECRET_ACCESS_KEY", "env-secret\n"),
        ("AWS_SESSION_TOKEN", "env-token"),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ENDPOINT_URL", "http://host:9000"),
        ("AWS_BUCKET", "another"),
    ):
        monkeypatch.setenv(name, value)
    address, parameters = await signed(ObjectStoreSettings("s3://bucket"))
    assert address == "http://host:9000/bucket/acc/a"
    assert parameters["X-Amz-Credential"].startswith("ENVID/")
    assert "/eu-west-1/s3/" in parameters["X-Amz-Credential"]
    assert parameters["X-Amz-Security-Token"] == "env-token"

    # A token of the environment goes with the pair of the environment only.
    _, parameters = await signed(replace(S3, session_token=None, region="us-west-2"))
    assert parameters["X-Amz-Credential"].startswith("AKIAID/")
    assert "/us-west-2/s3/" in parameters["X-Amz-Credential"]
    assert "X-Amz-Security-Token" not in parameters


async def test_the_secret_alone_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = await signed(replace(S3, session_token=None))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    _, parameters = await signed(ObjectStoreSettings("s3://bucket/pre", access_key_id="AKIAID"))
    assert parameters["X-Amz-Credential"] == expected["X-Amz-Credential"]


def test_how_requests_are_made() -> None:
    gcs = ObjectStoreSettings("gs://bucket")
    azure = ObjectStoreSettings("az://container", access_key_id="account")
    for settings in (S3, gcs, azure):
        store = open_provider(replace(settings, connect_timeout_ms=1_500)).store
        assert isinstance(store, S3Store | GCSStore | AzureStore)
        assert store.retry_config is not None
        assert store.retry_config["max_retries"] == 0
        options = store.client_options
        assert options is not None
        assert options["connect_timeout"] == "1s 500ms"
        assert "11months" in str(options["timeout"])
        assert str(options["allow_http"]).lower() == "true"


@pytest.fixture
def service_account(tmp_path: Path) -> Path:
    key = subprocess.run(
        [require("openssl", "openssl"), "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    account = {
        "type": "service_account",
        "client_email": "node@project.iam",
        "private_key_id": "1",
        "private_key": key,
    }
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account))
    return file


@pytest.mark.parametrize("from_environment", [False, True])
async def test_gcs(service_account: Path, monkeypatch: pytest.MonkeyPatch, from_environment: bool) -> None:
    settings = ObjectStoreSettings("gs://bucket/pre", credentials_file=service_account)
    if from_environment:
        settings = ObjectStoreSettings("gs://bucket/pre")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account))
    provider = open_provider(settings)
    assert provider.digest_attribute == "undercroft-sha256"
    address, parameters = await signed(settings)
    assert address == "https://storage.googleapis.com/bucket/pre/acc/a"
    assert parameters["X-Goog-Credential"].startswith("node@project.iam/")

    emulator = open_provider(replace(settings, endpoint="http://host:4443")).store
    assert isinstance(emulator, GCSStore)
    assert emulator.config.get("base_url") == "http://host:4443"


@pytest.mark.parametrize("from_environment", [False, True])
async def test_azure(monkeypatch: pytest.MonkeyPatch, from_environment: bool) -> None:
    key = base64.b64encode(b"key").decode()
    url = "az://container/pre"
    settings = ObjectStoreSettings(url, access_key_id="account", secret_access_key=key)
    if from_environment:
        settings = ObjectStoreSettings(url)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", key)
    # Azure refuses a hyphen in the name of metadata.
    assert open_provider(settings).digest_attribute == "undercroft_sha256"
    address, parameters = await signed(settings)
    assert address == "https://account.blob.core.windows.net/container/pre/acc/a"
    assert parameters["sp"] == "r"
    address, _ = await signed(replace(settings, endpoint="http://host:10000/account"))
    assert address == "http://host:10000/account/container/pre/acc/a"


def test_azure_without_an_account_or_with_no_key() -> None:
    assert "set access_key_id" in refusal(ObjectStoreSettings("az://container"))
    broken = ObjectStoreSettings("az://container", access_key_id="account", secret_access_key=f"!{SECRET}")
    assert "not the base64" in refusal(broken)


class _NoSuchKey(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>NoSuchKey</Code></Error>"
        self.send_response(404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@contextmanager
def _https(certificate: Path, key: Path) -> Iterator[str]:
    class Quiet(HTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that does not trust us is what one test is about."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Quiet(("127.0.0.1", 0), _NoSuchKey) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def own_certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost, signed by itself, and its key."""
    certificate, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    make = [require("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=x", "-addext", "subjectAltName=DNS:localhost"]
    # Not an authority's: such a certificate would not do for a server.
    names += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*make, *names, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


async def test_an_authority_of_ones_own(own_certificate: tuple[Path, Path]) -> None:
    certificate, key = own_certificate
    with _https(certificate, key) as url:
        settings = replace(S3, endpoint=url)
        assert await opened(replace(settings, ca_file=certificate)).get("acc/a") is None
        with pytest.raises(ObjectStoreError, match="certificate is not trusted"):
            await opened(settings).get("acc/a")
