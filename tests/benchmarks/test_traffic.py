"""Traffic has the shape that docs/performance.md says it has."""

import hashlib
import itertools
import random
import re
from collections import Counter

import pytest

from benchmarks.dialects import FOREIGN, NODE
from benchmarks.loading import place_of
from benchmarks.traffic import (
    KEY_VALUE,
    MODULE,
    MODULE_BYTES,
    SMALL,
    SMALL_BYTES,
    Action,
    Entry,
    Mix,
    Step,
    Traffic,
    arrivals,
    module_size,
    small_size,
    steps_of,
)

PLACE = place_of("http://127.0.0.1:4000/base", NODE)
MIX = Mix(small=200, modules=20)


def looked_up(count: int, seed: str = "seed") -> list[Step]:
    return list(itertools.islice(Traffic(PLACE, MIX, seed).closed(), count))


def test_arrivals_come_in_order_at_the_rate_that_was_asked_for() -> None:
    found = list(arrivals(random.Random(1), 1_000, 20))
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] < 20
    assert len(found) == pytest.approx(20_000, rel=0.03)


def test_gaps_between_arrivals_are_those_of_a_poisson_process() -> None:
    found = list(arrivals(random.Random(1), 100, 200))
    gaps = [later - earlier for earlier, later in itertools.pairwise(found)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    # Of evenly spaced arrivals it would be 0.
    assert deviation == pytest.approx(mean, rel=0.05)


def test_sizes_stay_within_their_bounds_and_have_the_stated_middle() -> None:
    chance = random.Random(1)
    small = sorted(small_size(chance) for _ in range(5_001))
    modules = sorted(module_size(chance) for _ in range(5_001))
    assert SMALL_BYTES[0] <= small[0]
    assert small[-1] <= SMALL_BYTES[1]
    assert small[2_500] == pytest.approx(16 << 10, rel=0.06)
    assert MODULE_BYTES[0] <= modules[0]
    assert modules[-1] <= MODULE_BYTES[1]
    assert modules[2_500] == pytest.approx(512 << 10, rel=0.06)


def test_shares_of_kinds_and_hits_are_those_of_the_mix() -> None:
    steps = looked_up(8_000)
    kinds = Counter(step.entry.kind for step in steps)
    assert kinds[MODULE] / len(steps) == pytest.approx(0.2, abs=0.02)
    assert kinds[KEY_VALUE] / len(steps) == pytest.approx(0.4, abs=0.03)
    for hits, ours in ((0.97, (SMALL, KEY_VALUE)), (0.48, (MODULE,))):
        actions = Counter(step.action for step in steps if step.entry.kind in ours)
        assert set(actions) == {Action.FETCH, Action.FETCH_AND_STORE}
        assert actions[Action.FETCH] / actions.total() == pytest.approx(hits, abs=0.03)


def test_a_miss_asks_for_what_nobody_else_asks_for() -> None:
    missed = [step.entry.name for step in looked_up(3_000) if step.action is Action.FETCH_AND_STORE]
    there = {step.entry.name for step in Traffic(PLACE, MIX, "seed").filling()}
    assert len(set(missed)) == len(missed)
    assert not there & set(missed)


def test_popularity_is_skewed() -> None:
    found = Counter(step.entry.name for step in looked_up(20_000) if step.entry.kind != MODULE)
    (_, first), *_, (_, _last) = found.most_common()
    # Of 200 entries a fair choice would ask for each once in 200 times.
    assert first > 10 * 20_000 * 0.8 * 0.97 / 200 / 2


def test_the_same_seed_makes_the_same_steps_and_another_seed_others() -> None:
    names = [step.entry.fetch for step in looked_up(500)]
    assert names == [step.entry.fetch for step in looked_up(500)]
    assert names != [step.entry.fetch for step in looked_up(500, "another")]


def test_an_open_plan_keeps_its_times() -> None:
    order = {"what": "open", "seed": "s", "size": 0, "count": 0, "rate": 200, "seconds": 2, "mix": vars(MIX)}
    steps = steps_of(order, PLACE)
    assert isinstance(steps, list)
    assert [step.due for step in steps] == sorted(step.due for step in steps)
    assert len(steps) == pytest.approx(400, rel=0.2)


def test_traffic_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="no traffic is called dance"):
        steps_of({"what": "dance", "seed": "", "size": 0, "count": 0, "mix": {}}, PLACE)


@pytest.mark.parametrize("kind", [SMALL, KEY_VALUE, MODULE])
@pytest.mark.parametrize("dialect", [NODE, *FOREIGN])
def test_a_request_says_how_long_its_body_is(dialect: str, kind: str) -> None:
    place = place_of("http://127.0.0.1:4000/base", dialect)
    entry = place.entry(kind, hashlib.sha256(b"name").hexdigest(), 40_001)
    length = re.search(rb"Content-Length: (\d+)\r\n", entry.store)
    assert length is not None
    assert int(length.group(1)) == len(entry.body())
    assert len(entry.answer()) == entry.length


def test_a_blob_of_bazel_is_named_by_its_content() -> None:
    entry = place_of("http://127.0.0.1:4000/base", "bazel").entry(SMALL, "00" * 32, 5_000)
    digest = hashlib.sha256(entry.body()).hexdigest()
    assert entry.fetch.startswith(f"GET /base/cas/{digest} HTTP/1.1\r\n".encode())


def test_entries_of_the_node_are_spread_over_its_dialects() -> None:
    entries: list[Entry] = [step.entry for step in Traffic(PLACE, MIX, "seed").filling()]
    assert {entry.dialect.name for entry in entries} == {
        *("ccache", "bazel", "webdav", "xcode", "key_values"),
        *("gradle", "turborepo", "nx"),
    }


@pytest.mark.parametrize("url", ["http://192.0.2.1:80", "https://127.0.0.1:1", "http://127.0.0.1", "no url"])
def test_only_servers_on_this_machine_are_loaded(url: str) -> None:
    with pytest.raises(SystemExit, match="on this machine"):
        place_of(url, "ccache")


def test_an_unknown_dialect_is_refused() -> None:
    with pytest.raises(SystemExit, match="no dialect"):
        place_of("http://127.0.0.1:4000", "cvs")


def test_headers_go_with_each_request() -> None:
    place = place_of("http://127.0.0.1:4000", "ccache", {"Authorization": "Bearer it"})
    entry = place.entry(SMALL, "ab" * 32, 10)
    assert b"\r\nAuthorization: Bearer it\r\n" in entry.fetch
    assert b"\r\nAuthorization: Bearer it\r\n" in entry.store
