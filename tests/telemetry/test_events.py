"""Events reach whoever attached, in order, at once."""

import pytest

from undercroft.telemetry.events import Events


def test_handlers_of_the_name_are_called_in_their_order() -> None:
    telemetry, seen = Events(), list[tuple[str, float, str]]()
    telemetry.attach("a", lambda m, d: seen.append(("first", m["n"], d["k"])))
    telemetry.attach("a", lambda m, d: seen.append(("second", m["n"], d["k"])))
    telemetry.attach("b", lambda m, d: seen.append(("other", m["n"], d["k"])))
    telemetry.emit("a", {"n": 1}, {"k": "v"})
    assert seen == [("first", 1, "v"), ("second", 1, "v")]


def test_nobody_attached() -> None:
    Events().emit("a", {}, {})


def test_error_of_a_handler_is_not_hidden() -> None:
    telemetry = Events()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    telemetry.attach("a", fail)
    with pytest.raises(ZeroDivisionError):
        telemetry.emit("a", {}, {})
