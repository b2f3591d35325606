"""A node's status as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from node.operate.status import Report

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(report: Report | None) -> bytes:
    """The text format; without a report only that the node is not up."""
    registry = CollectorRegistry()
    registry.register(_Once(report))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, report: Report | None) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        report = self._report
        yield _gauge("wardtree_up", "1 while the relay of the node writes its status.", _is_up(report))
        if report is not None:
            yield from _metrics(report)


def _is_up(report: Report | None) -> bool:
    return report is not None and report.running == "yes"


def _metrics(report: Report) -> Iterator[Metric]:
    info = InfoMetricFamily("wardtree_node", "Which node this is.")
    info.add_metric([], {"party": report.party, "role": report.role, "manifest_version": str(report.manifest_version)})
    yield info
    for name, text, value in (
        ("closed_round", "The last round that was closed; -1 before the first.", _last(report)),
        ("study_rounds", "Rounds of the study, those of evaluation among them.", report.rounds),
        ("has_parent", "1 while this node is connected to a parent.", report.parent is not None),
        ("children", "Parties that are connected below.", len(report.children)),
        ("last_contributors", "Parties in the last closed round.", report.closed[-1].contributors
            if report.closed else None),
        ("last_round_seconds", "From the opening of the last round here until it was applied.",
            report.closed[-1].seconds if report.closed else None),
        ("last_word_seconds", "Since a neighbour was last heard.", report.seconds_since_word),
        ("status_age_seconds", "Since the relay wrote its status.", report.age),
        ("failed", "1 when the node ended with an error.", report.error is not None),
        ("epsilon", "Of the privacy budget, spent; absent while no privacy mode is on.", report.epsilon),
        ("epsilon_budget", "The privacy budget; absent while no privacy mode is on.", report.budget),
    ):  # fmt: skip
        if value is not None:
            yield _gauge(f"wardtree_{name}", text, value)
    for name, text, value in (
        ("left_out", "Closed rounds without this node's update.", report.left_out_count),
        ("refused", "Messages and connections that were dropped since the start.", report.refused),
    ):
        counter = CounterMetricFamily(f"wardtree_{name}", text)
        counter.add_metric([], value)
        yield counter
    parties = GaugeMetricFamily("wardtree_parties", "Parties by standing, as this node knows.", labels=["standing"])
    for standing in ("here", "gone", "awaited"):
        parties.add_metric([standing], sum(party.standing == standing for party in report.parties))
    yield parties
    seconds = CounterMetricFamily("wardtree_stage_seconds", "Time in each of this node's steps.", labels=["stage"])
    steps = CounterMetricFamily("wardtree_stages", "How often each of this node's steps was made.", labels=["stage"])
    for name, stage in report.stages.items():
        seconds.add_metric([name], stage.seconds)
        steps.add_metric([name], stage.count)
    yield from (seconds, steps)
    if report.round:
        flow = GaugeMetricFamily("wardtree_segments", "Segments of the round in hand.", labels=["step"])
        for step in ("segments", "sealed", "merged", "sent", "opened", "applied"):
            flow.add_metric([step if step != "segments" else "all"], getattr(report.round, step))
        yield flow
    if report.evaluations:
        scores = GaugeMetricFamily("wardtree_evaluation", "The last published evaluation.", labels=["metric"])
        for metric, value in report.evaluations[-1].metrics.items():
            scores.add_metric([metric], value)
        yield scores


def _last(report: Report) -> int:
    return report.closed[-1].round if report.closed else -1


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))
