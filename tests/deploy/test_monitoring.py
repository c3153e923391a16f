"""What the dashboard and the alert rules ask for is on a live node."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.node_process import node_process

DEPLOY = Path(__file__).parents[2] / "deploy"

# What Prometheus itself adds, and what Grafana puts in their place.
OF_PROMETHEUS = {"job", "instance"}

Series = dict[str, dict[str, set[str]]]
"""By name of a series its labels, and by label the values it has."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Series:
    with node_process(tmp_path_factory.mktemp("node") / "data") as node:
        text = httpx.get(f"{node.url}/metrics").text
    series: Series = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in {"": "", **sample.labels}.items():
                series[sample.name][label].add(value)
    return series


def dashboard_queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana/undercroft.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    variables = [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    return [*panels, *variables]


def alert_queries() -> list[str]:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


QUERIES = [*dashboard_queries(), *alert_queries()]

# A name with its selector, in the place of a series: not a label of `by (...)`, not a function.
_SELECTED = re.compile(r"\b((?:undercroft|tuist|cache)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')
_GROUPED = re.compile(r"\b(?:by|without|on) \(([^)]*)\)")


def selected(query: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each series of a query, with the labels and values its selector names."""
    for name, selector in _SELECTED.findall(query):
        yield name, _MATCHER.findall(selector)


def missing(query: str, live: Series) -> list[str]:
    """What a query names and the node does not have."""
    absent = []
    names = [name for name, _ in selected(query)]
    for name, matchers in selected(query):
        if name not in live:
            absent.append(name)
        for label, values in matchers:
            if label not in OF_PROMETHEUS:
                wrong = set(values.split("|")) - live.get(name, {}).get(label, set())
                absent += [f"{name}{{{label}={value}}}" for value in sorted(wrong)]
    for labels in _GROUPED.findall(query):
        for label in set(labels.split(", ")) - OF_PROMETHEUS:
            absent += [f"{name} by {label}" for name in names if label not in live.get(name, {})]
    return absent


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_what_a_node_has(query: str, live: Series) -> None:
    assert query.strip() == 'up{job="undercroft"} == 0' or list(selected(query))
    assert missing(query, live) == []


def test_what_a_node_does_not_have_is_found(live: Series) -> None:
    assert missing("sum(rate(undercroft_nothing_total[5m]))", live) == ["undercroft_nothing_total"]
    by = "sum by (instance, project) (undercroft_artifact_downloads_total)"
    assert missing(by, live) == ["undercroft_artifact_downloads_total by project"]
    of = 'undercroft_artifact_downloads_total{job="x", result=~"hit|lost"}'
    assert missing(of, live) == ["undercroft_artifact_downloads_total{result=lost}"]


def test_alerts_say_how_bad_it_is_and_what_to_do() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 0
    for rule in rules:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys(), rule["alert"]


def test_prometheus_loads_the_alerts_and_asks_the_node_of_the_compose_file() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    compose = yaml.safe_load((DEPLOY / "docker/compose.yml").read_text())
    assert prometheus["rule_files"] == ["alerts.yml"]
    (job,) = prometheus["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert job["job_name"] == "undercroft"
    assert compose["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]
