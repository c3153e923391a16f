"""What was counted in the last hour and day."""

import pytest

from undercroft.telemetry import activity, events
from undercroft.telemetry.activity import KEY_VALUES, OTHERS, Activity, merged
from undercroft.telemetry.events import Events

# A whole number of minutes, quarters and days.
START = 20_000 * 86_400
HOUR = 3_600


class Rig:
    def __init__(self) -> None:
        self.now = float(START)
        self.telemetry = Events()
        self.activity = Activity(self.telemetry, lambda: self.now)

    def download(self, result: str, size: int = 0, tool: str = "ccache", project: str = "acme/app") -> None:
        labels = {"tool": tool, "project": project, "result": result}
        self.telemetry.emit(events.DOWNLOAD, {"bytes": size}, labels)

    def upload(self, result: str, size: int = 0) -> None:
        labels = {"tool": "ccache", "project": "acme/app", "result": result, "reason": ""}
        self.telemetry.emit(events.UPLOAD, {"bytes": size}, labels)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_nothing_yet(rig: Rig) -> None:
    assert rig.activity.hour().total.requests == 0
    assert len(rig.activity.hour().points) == 60
    assert len(rig.activity.day().points) == 96
    assert rig.activity.hour().points[-1].at == START
    assert rig.activity.day().points[0].at == START - 95 * 900


def test_each_event_counts_as_what_it_is(rig: Rig) -> None:
    for result, size in (("hit", 10), ("s3_hit", 20), ("miss", 0), ("s3_miss", 0), ("error", 0)):
        rig.download(result, size)
    for result, size in (("created", 5), ("replaced", 6), ("exists", 7), ("cancelled", 8), ("error", 9)):
        rig.upload(result, size)
    total = rig.activity.hour().total
    assert (total.requests, total.hits, total.misses, total.failed) == (10, 2, 2, 2)
    assert (total.served_bytes, total.stored, total.stored_bytes) == (30, 2, 11)


def test_key_values_and_time_saved(rig: Rig) -> None:
    for result in ("hit", "miss"):
        rig.telemetry.emit(events.KEY_VALUE_GET, {"count": 1}, {"result": result, "project": "a/b"})
    for result in ("success", "error"):
        rig.telemetry.emit(events.KEY_VALUE_PUT, {"count": 1}, {"result": result, "project": "a/b"})
    for source in ("local", "remote"):
        labels = {"source": source, "event": "hit", "project": "c/d"}
        rig.telemetry.emit(events.TURBOREPO, {"count": 1, "saved_seconds": 2.5}, labels)
    hour = rig.activity.hour()
    values = hour.tools[KEY_VALUES]
    assert (values.requests, values.hits, values.misses, values.stored, values.failed) == (4, 1, 1, 1, 1)
    assert hour.projects["c/d"].saved_seconds == hour.tools["turborepo"].saved_seconds == 2.5


def test_by_tool_and_by_project(rig: Rig) -> None:
    rig.download("hit", 1, tool="ccache", project="a/x")
    rig.download("hit", 2, tool="nx", project="a/x")
    rig.download("miss", 0, tool="nx", project="a/y")
    hour = rig.activity.hour()
    assert {tool: counts.requests for tool, counts in hour.tools.items()} == {"ccache": 1, "nx": 2}
    assert {name: counts.requests for name, counts in hour.projects.items()} == {"a/x": 2, "a/y": 1}


def test_an_hour_forgets_and_a_day_remembers(rig: Rig) -> None:
    rig.download("hit", 1)
    rig.now += 59 * 60
    rig.download("hit", 1)
    assert rig.activity.hour().total.hits == 2
    rig.now += 60
    assert rig.activity.hour().total.hits == 1
    rig.download("hit", 1)
    assert rig.activity.hour().total.hits == 2
    assert rig.activity.day().total.hits == 3
    assert [point.total.hits for point in rig.activity.day().points[-5:]] == [1, 0, 0, 1, 1]
    rig.now = START + 24 * HOUR
    assert rig.activity.hour().total.hits == 0
    assert rig.activity.day().total.hits == 2
    rig.now += HOUR
    rig.download("hit", 1)
    assert rig.activity.day().total.hits == 1


def test_memory_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "MOST_PAIRS", 3)
    for number in range(10):
        rig.download("hit", project=f"a/{number}")
    projects = rig.activity.hour().projects
    assert {name: counts.hits for name, counts in projects.items()} == {
        "a/0": 1,
        "a/1": 1,
        "a/2": 1,
        OTHERS: 7,
    }


def test_a_clock_that_is_set_back(rig: Rig) -> None:
    rig.download("hit")
    rig.now -= 2 * HOUR
    rig.download("miss")
    hour = rig.activity.hour()
    assert (hour.total.hits, hour.total.misses) == (0, 1)


def test_several_processes(rig: Rig) -> None:
    other = Rig()
    rig.download("hit", 1, project="a/x")
    other.download("hit", 2, project="a/x")
    other.download("miss", project="a/y")
    both = merged([rig.activity.hour(), other.activity.hour()])
    assert (both.total.hits, both.total.misses, both.total.served_bytes) == (2, 1, 3)
    assert both.projects["a/x"].hits == 2
    assert len(both.points) == 60
    assert both.points[-1].total.requests == 3
    # Those that were merged are as they were.
    assert rig.activity.hour().projects["a/x"].hits == 1
