"""Settings: precedence, names, units, and all that is wrong told at once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from undercroft.config import Settings, environment_name, every_setting, load
from undercroft.errors import SettingsError


@pytest.fixture(autouse=True)
def environment() -> Iterator[dict[str, str]]:
    """An environment without settings of whoever runs the tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNDERCROFT_")}
    with mock.patch.dict(os.environ, clean, clear=True):
        yield os.environ  # type: ignore[misc]  # typeshed has no dict in os.environ


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "undercroft.toml"


def problems(flags: dict[str, Any] | None = None, config_file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as raised:
        load(flags or {}, config_file)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_defaults() -> None:
    settings = load({})
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 4000, Path("data"))
    assert settings.ack == "committed"
    for name, value in {
        "flush_interval_ms": 200,
        "flush_timeout_ms": 30_000,
        "max_batch_size": 1_000,
        "retry_max_attempts": 5,
        "retry_base_delay_ms": 50,
        "retry_max_delay_ms": 2_000,
        "shutdown_ms": 30_000,
    }.items():
        assert getattr(settings.buffers, name) == value
        for buffer in ("key_values", "cas_artifacts", "s3_transfers"):
            assert getattr(settings.buffers.of(buffer), name) == value
    uploads = settings.uploads
    assert (uploads.cas_max_bytes, uploads.gradle_max_bytes) == (25 << 20, 100 << 20)


def test_flags_win_over_environment_and_that_over_the_file(environment: dict[str, str], toml: Path) -> None:
    toml.write_text("port = 1\n")
    assert load({}, toml).port == 1
    environment["UNDERCROFT_PORT"] = "2"
    assert load({}, toml).port == 2
    assert load({"port": 3}, toml).port == 3


def test_sources_are_merged_inside_groups(environment: dict[str, str], toml: Path) -> None:
    toml.write_text("[buffers]\nflush_interval_ms = 11\nshutdown_ms = 12\n[log]\nlevel = 'debug'\n")
    environment["UNDERCROFT_BUFFERS__SHUTDOWN_MS"] = "22"
    settings = load({}, toml)
    assert (settings.buffers.flush_interval_ms, settings.buffers.shutdown_ms) == (11, 22)
    assert settings.log.level == "debug"


def test_overrides_of_one_buffer(environment: dict[str, str], toml: Path) -> None:
    toml.write_text(
        "[buffers]\nmax_batch_size = 10\n[buffers.key_values]\nshutdown_ms = 5\nmax_batch_size = 20\n"
    )
    environment["UNDERCROFT_BUFFERS__KEY_VALUES__MAX_BATCH_SIZE"] = "30"
    environment["UNDERCROFT_BUFFERS__S3_TRANSFERS__MAX_PENDING_BYTES"] = "1MiB"
    buffers = load({}, toml).buffers
    assert (buffers.of("key_values").max_batch_size, buffers.of("key_values").shutdown_ms) == (30, 5)
    assert (buffers.of("cas_artifacts").max_batch_size, buffers.of("cas_artifacts").shutdown_ms) == (
        10,
        30_000,
    )
    assert buffers.of("s3_transfers").max_pending_bytes == 1 << 20


@pytest.mark.parametrize(
    ("text", "value"),
    [("25MiB", 25 << 20), ("25 MiB", 25 << 20), ("200GB", 200 * 10**9), ("1024", 1024), ("1k", 1000)],
)
def test_sizes_have_units(environment: dict[str, str], toml: Path, text: str, value: int) -> None:
    environment["UNDERCROFT_UPLOADS__CAS_MAX_BYTES"] = text
    toml.write_text(f"[disk]\nlimit_bytes = '{text}'\n")
    settings = load({}, toml)
    assert (settings.uploads.cas_max_bytes, settings.disk.limit_bytes) == (value, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("PORT", ""),
        ("ACK", "maybe"),
        ("HOST", ""),
        ("BUFFERS__FLUSH_INTERVAL_MS", "0"),
        ("BUFFERS__KEY_VALUES__MAX_BATCH_SIZE", "0"),
        ("BUFFERS__MAX_PENDING_BYTES", "0"),
        ("BUFFERS__RETRY_MAX_ATTEMPTS", "-1"),
        ("DISK__LIMIT_PERCENT", "0"),
        ("DISK__LIMIT_PERCENT", "101"),
        ("DISK__LIMIT_BYTES", "much"),
        ("DISK__FSYNC", "perhaps"),
        ("DATABASE__SYNCHRONOUS", "off"),
        ("UPLOADS__READ_TIMEOUT_MS", "0"),
        ("LOG__LEVEL", "loud"),
        ("LOG__FORMAT", "xml"),
    ],
)
def test_wrong_value_is_named(environment: dict[str, str], name: str, value: str) -> None:
    environment[f"UNDERCROFT_{name}"] = value
    setting = name.lower().replace("__", ".")
    assert f"{setting} = {value!r}" in problems()


def test_one_is_a_setting_and_not_settings(environment: dict[str, str]) -> None:
    environment["UNDERCROFT_PORT"] = "http"
    assert problems().startswith("1 wrong setting: port")


def test_settings_that_contradict_each_other_have_no_one_place(
    environment: dict[str, str], toml: Path
) -> None:
    toml.write_text("[disk]\nhigh_watermark_percent = 50\n")
    environment["UNDERCROFT_DISK__TARGET_PERCENT"] = "70"
    message = problems({}, toml)
    assert "disk.target_percent = 70.0 is above disk.high_watermark_percent = 50.0" in message
    assert "set by" not in message


def test_a_switch_is_no_number(toml: Path) -> None:
    toml.write_text("[disk]\nlimit_bytes = true\n[http]\nmax_connections = false\nmetrics = true\n")
    message = problems({}, toml)
    assert message.startswith("2 wrong settings: ")
    assert "disk.limit_bytes = True: true and false say nothing here" in message


def test_an_object_store_lies_outside_the_data_directory(tmp_path: Path) -> None:
    def settings(place: Path) -> dict[str, Any]:
        return {"data_dir": tmp_path / "data", "object_store": {"url": place.as_uri()}}

    assert load(settings(tmp_path / "data-of-all")).object_store.url
    for place in (tmp_path / "data", tmp_path / "data" / "artifacts", tmp_path / "x" / ".." / "data"):
        assert f"is inside the data directory {tmp_path}/data" in problems(settings(place))


def test_what_is_wrong_is_told_with_its_place(environment: dict[str, str], toml: Path) -> None:
    environment["UNDERCROFT_PORT"] = "http"
    toml.write_text("port = 'hidden by the environment'\n[disk]\nlimit_bytes = 'much'\n[no]\nsuch = 1\n")
    message = problems({"workers": 0}, toml)
    assert "equal to 1 (set by a flag); " in message
    assert "not a whole number (set by UNDERCROFT_PORT); " in message
    assert f"200GB (set by {toml}); " in message
    assert f"no is no setting (set by {toml})" in message


@pytest.mark.parametrize("value", ["-5", "much", "5 elephants", "-5GB"])
def test_what_is_no_size_is_told_what_one_is(environment: dict[str, str], value: str) -> None:
    environment["UNDERCROFT_DISK__LIMIT_BYTES"] = value
    message = problems()
    assert f"disk.limit_bytes = {value!r}: not a size" in message
    assert "write a number of bytes that is not negative, or one with a unit, like 25MiB or 200GB" in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "TARGET_PERCENT",
            "95",
            "disk.target_percent = 95.0 is above disk.high_watermark_percent = 90.0: eviction begins",
        ),
        (
            "HIGH_WATERMARK_PERCENT",
            "97",
            "disk.high_watermark_percent = 97.0 is above disk.limit_percent = 95.0: uploads",
        ),
        (
            "LIMIT_PERCENT",
            "85",
            "disk.high_watermark_percent = 90.0 is above disk.limit_percent = 85.0: uploads",
        ),
    ],
)
def test_marks_that_contradict_each_other_are_both_named(
    environment: dict[str, str], name: str, value: str, said: str
) -> None:
    environment[f"UNDERCROFT_DISK__{name}"] = value
    assert problems().startswith(f"1 wrong setting: {said}")


def test_a_bound_below_what_an_empty_database_takes(environment: dict[str, str]) -> None:
    environment["UNDERCROFT_KEY_VALUES__MAX_DATABASE_BYTES"] = "1000000"
    assert "key_values.max_database_bytes = '1000000'" in problems()
    environment["UNDERCROFT_KEY_VALUES__MAX_DATABASE_BYTES"] = "1MiB"
    assert load({}).key_values.max_database_bytes == 1 << 20


def test_settings_of_an_object_store_without_its_url(environment: dict[str, str]) -> None:
    environment["UNDERCROFT_OBJECT_STORE__REDIRECT"] = "true"
    environment["UNDERCROFT_OBJECT_STORE__SECRET_ACCESS_KEY"] = "secret"
    environment["UNDERCROFT_OBJECT_STORE__CONCURRENCY"] = "8"  # as it is anyway
    assert load({}).object_store.without_effect() == [
        "object_store.redirect",
        "object_store.secret_access_key",
    ]
    environment["UNDERCROFT_OBJECT_STORE__URL"] = "s3://bucket"
    assert load({}).object_store.without_effect() == []


@pytest.mark.parametrize(
    "name", ["UNDERCROFT_PROT", "UNDERCROFT_BUFFERS__X", "UNDERCROFT_BUFFERS__KEY_VALUES__X"]
)
def test_unknown_name_in_the_environment(environment: dict[str, str], name: str) -> None:
    environment[name] = "1"
    assert f"{name} in the environment is no setting" in problems()


def test_a_file_that_is_no_toml(toml: Path) -> None:
    toml.write_text("port = [\n")
    assert f"config file {toml}: it is not valid TOML: " in problems(config_file=toml)


@pytest.mark.parametrize("name", ["max_age_days", "max_database_bytes"])
def test_none_where_the_default_is_a_bound(environment: dict[str, str], toml: Path, name: str) -> None:
    assert getattr(load({}).key_values, name) is not None
    environment[f"UNDERCROFT_KEY_VALUES__{name.upper()}"] = "none"
    assert getattr(load({}).key_values, name) is None
    del environment[f"UNDERCROFT_KEY_VALUES__{name.upper()}"]
    toml.write_text(f"[key_values]\n{name} = 'none'\n")
    assert getattr(load({}, toml).key_values, name) is None


def test_none_where_there_must_be_something(environment: dict[str, str]) -> None:
    environment["UNDERCROFT_DISK__LIMIT_PERCENT"] = "none"
    assert "disk.limit_percent" in problems()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("prot = 1", "prot"),
        ("[buffers]\nx = 1", "buffers.x"),
        ("[buffers.key_values]\nx = 1", "buffers.key_values.x"),
        ("[nothing]\nx = 1", "nothing"),
    ],
)
def test_unknown_name_in_the_file(toml: Path, text: str, name: str) -> None:
    toml.write_text(text)
    assert f"{name} is no setting" in problems(config_file=toml)


def test_all_problems_are_told_together(environment: dict[str, str], toml: Path) -> None:
    toml.write_text("unknown = 1\nack = 'maybe'\n[log]\nlevel = 'loud'\n")
    environment["UNDERCROFT_BUFFERS__SHUTDOWN_MS"] = "soon"
    environment["UNDERCROFT_ELSE"] = "1"
    message = problems({"port": 99_999, "host": "0.0.0.0"}, toml)
    assert message.startswith("7 wrong settings: ")
    for name in ("unknown", "ack", "log.level", "buffers.shutdown_ms", "UNDERCROFT_ELSE", "port", "host"):
        assert name in message


@pytest.mark.parametrize("text", ["port = ", "[", "\xff", "port = 1\nport = 2", "x=" + "[" * 100_000])
def test_file_that_is_no_toml(environment: dict[str, str], toml: Path, text: str) -> None:
    toml.write_bytes(text.encode("latin-1"))
    environment["UNDERCROFT_ELSE"] = "1"
    message = problems(config_file=toml)
    assert str(toml) in message
    assert "UNDERCROFT_ELSE" in message


def test_number_that_is_too_long_to_be_shown(environment: dict[str, str], toml: Path) -> None:
    toml.write_text("port = 0x" + "f" * 10_000)
    assert "port = (a very long number): " in problems(config_file=toml)


@pytest.mark.parametrize("text", ['data_dir = "a\\u0000b"', '[object_store]\nca_file = "a\\u0000b"'])
def test_path_that_no_system_has(environment: dict[str, str], toml: Path, text: str) -> None:
    toml.write_text(text)
    assert "a path has no NUL in it" in problems(config_file=toml)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert "no-such.toml" in problems(config_file=tmp_path / "no-such.toml")
    assert "Is a directory" in problems(config_file=tmp_path)


def test_a_group_is_no_setting_and_hides_no_other_problem(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"UNDERCROFT_BUFFERS": "{", "UNDERCROFT_ACK": "x"}
    with pytest.raises(SettingsError) as caught:
        load({"port": 70_000}, tmp_path / "missing.toml")
    for problem in ("UNDERCROFT_BUFFERS", "ack", "port", "missing.toml"):
        assert problem in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert load({"host": host}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.com", "localhost.example.com"])
def test_other_addresses_do(environment: dict[str, str], host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.config.socket.getaddrinfo", lambda *_: [])  # there may be no name server
    assert "allow_unauthenticated" in problems({"host": host})
    environment["UNDERCROFT_ALLOW_UNAUTHENTICATED"] = "true"
    assert load({"host": host}).host == host


def test_who_misspelt_a_name_is_not_told_to_do_without_protection() -> None:
    said = problems({"host": "no.such.host.invalid"})
    assert "host = 'no.such.host.invalid'" in said
    assert "give an address of this machine" in said
    assert "allow_unauthenticated" not in said


def test_an_empty_data_directory_is_not_the_one_we_are_in(environment: dict[str, str]) -> None:
    environment["UNDERCROFT_DATA_DIR"] = ""
    assert "data_dir = '': it is empty: give a directory" in problems({})


@pytest.mark.parametrize(
    "url", ["https://tuist.example.com", "http://127.0.0.1:8080/prefix/", "HTTPS://[::1]:1"]
)
def test_a_tuist_server(url: str) -> None:
    auth = load({"auth": {"mode": "tuist", "tuist_server_url": url}, "host": "0.0.0.0"}).auth
    assert (auth.mode, auth.tuist_server_url) == ("tuist", url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("tuist.example.com", "http"),
        ("ftp://tuist.example.com", "http"),
        ("https://", "a host"),
        ("https:///path", "a host"),
        ("", "http"),
        ("https://ci:hunter2@tuist.example.com", "no user"),
        ("https://hunter2@tuist.example.com", "no user"),
        ("https://ci:hun/ter2@tuist.example.com", "no user"),
        ("https://tuist.example.com?token=1", "must end with"),
        ("https://tuist.example.com/#x", "must end with"),
        ("https://tuist.example.com/\n", "must end with"),
        ("https://tuist.example.com:x", "Port"),
        ("https://tuist.example.com:0", "a host"),
        ("https://[::1", "tuist_server_url"),
    ],
)
def test_what_is_no_tuist_server(environment: dict[str, str], url: str, says: str) -> None:
    environment |= {"UNDERCROFT_AUTH__MODE": "tuist", "UNDERCROFT_AUTH__TUIST_SERVER_URL": url}
    message = problems({"host": "0.0.0.0"})
    assert message.startswith("1 wrong setting: auth.tuist_server_url = ")
    assert says in message
    assert "hunter2" not in message
    assert "ter2" not in message


def test_settings_of_a_tuist_server_that_is_not_asked(environment: dict[str, str]) -> None:
    environment["UNDERCROFT_AUTH__TUIST_SERVER_URL"] = "https://tuist.example.com"
    environment["UNDERCROFT_AUTH__TUIST_JWT_SECRET"] = "secret"
    for mode in ("none", "tokens"):
        environment["UNDERCROFT_AUTH__MODE"] = mode
        assert load({}).auth.without_effect() == ["auth.tuist_jwt_secret", "auth.tuist_server_url"]
    environment["UNDERCROFT_AUTH__MODE"] = "tuist"
    assert load({}).auth.without_effect() == []


def test_mode_tuist_needs_a_server_and_a_key_that_is_one(environment: dict[str, str]) -> None:
    environment["UNDERCROFT_AUTH__MODE"] = "tuist"
    assert "auth.mode = 'tuist': set auth.tuist_server_url" in problems()
    environment["UNDERCROFT_AUTH__TUIST_JWT_SECRET"] = ""
    assert "auth.tuist_jwt_secret = (a secret)" in problems()
    environment["UNDERCROFT_AUTH__TUIST_JWT_SECRET"] = "hunter2"
    assert "hunter2" not in problems()


def test_settings_do_not_change() -> None:
    settings = load({})
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings, "port", 1)  # noqa: B010
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings.log, "level", "debug")  # noqa: B010


def test_every_setting_has_a_description_and_a_name_in_the_environment(environment: dict[str, str]) -> None:
    names = dict(every_setting())
    assert {"port", "buffers.shutdown_ms", "buffers.key_values.max_batch_size", "log.level"} <= set(names)
    overrides = ("buffers.key_values.", "buffers.cas_artifacts.", "buffers.s3_transfers.")
    for name, field in names.items():
        assert name.startswith(overrides) or field.description, name
        assert field.default is not None or "None" in str(field.annotation)
    assert (
        environment_name("buffers.key_values.max_batch_size")
        == "UNDERCROFT_BUFFERS__KEY_VALUES__MAX_BATCH_SIZE"
    )


def test_names_of_overrides_are_those_of_the_general_ones() -> None:
    names = {name.rsplit(".", 1)[1] for name, _ in every_setting() if name.startswith("buffers.key_values.")}
    general = {
        name.removeprefix("buffers.")
        for name, _ in every_setting()
        if name.count(".") == 1 and name.startswith("buffers.")
    }
    assert names == general


def test_default_settings_are_valid_ones() -> None:
    assert Settings().model_dump() == load({}).model_dump()
