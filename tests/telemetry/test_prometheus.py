"""The registry and the sums under names the library would not take."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from undercroft.telemetry.prometheus import Prometheus


def test_sums_keep_their_names_and_start_at_zero() -> None:
    prometheus = Prometheus()
    prometheus.sums.declare("bytes_sent", "text", {"tool": "a"})
    prometheus.sums.declare("bytes_sent", "text", {"tool": "b"})
    prometheus.sums.add("bytes_sent", 2.0, {"tool": "a"})
    prometheus.sums.add("bytes_sent", 3.0, {"tool": "a"})
    body, content_type = prometheus.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    (family,) = text_string_to_metric_families(body.decode())
    assert {(s.name, s.labels["tool"], s.value) for s in family.samples} == {
        ("bytes_sent", "a", 5.0),
        ("bytes_sent", "b", 0.0),
    }


def test_undeclared_sum_is_an_error() -> None:
    with pytest.raises(KeyError):
        Prometheus().sums.add("unknown", 1.0)


def test_two_nodes_in_one_process_count_apart() -> None:
    one, other = Prometheus(), Prometheus()
    one.sums.declare("x", "text")
    assert b"x" in one.render()[0]
    assert other.render()[0] == b""
