"""Prometheus metrics of a controller. They come from the runtime and the sync service, not sprinkled through deciding code."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SLOW = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class RuntimeMetrics:
    """What the reconcilers do; each by reconciler name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        by = ("reconciler",)
        self.queue_depth = Gauge("cairn_queue_depth", "Keys waiting to be looked at", by, registry=registry)
        self.reconcile_s = Histogram("cairn_reconcile_seconds", "Deciding about one key", by, registry=registry, buckets=_FAST)
        self.commit_s = Histogram("cairn_commit_seconds", "One commit of decisions", by, registry=registry, buckets=_SLOW)
        self.commits = Counter("cairn_commits", "Transactions committed", by, registry=registry)
        self.decisions = Counter("cairn_decisions", "Keys whose decision was committed", by, registry=registry)
        self.conflicts = Counter("cairn_conflicts", "Transactions refused because something moved", by, registry=registry)
        self.store_refused = Counter("cairn_store_refused", "Writes the store refused", ("why",), registry=registry)
        self.errors = Counter("cairn_reconcile_errors", "Keys that could not be decided about", by, registry=registry)


class SyncMetrics:
    """What goes to and comes from the nodes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connected = Gauge("cairn_agents_connected", "Nodes whose agent is connected here", registry=registry)
        self.lag_s = Histogram(
            "cairn_sync_lag_seconds", "From a change in the view until it was sent to a node", registry=registry, buckets=_SLOW
        )
        sent = Counter("cairn_sync_messages", "Messages sent to nodes", ("message",), registry=registry)
        self.sent = {what: sent.labels(what) for what in ("upsert", "remove", "bookmark")}
        self.reports = Counter("cairn_sync_reports", "Reports taken from nodes", registry=registry)
        self.snapshots = Counter("cairn_sync_snapshots", "Snapshots sent to nodes", registry=registry)
        self.refused = Counter("cairn_sync_refused", "Messages from nodes that were refused", ("why",), registry=registry)


class MeteringMetrics:
    """What is counted as usage."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.revisions = Counter("cairn_metering_revisions", "Revisions of the store that were counted", registry=registry)
        self.commits = Counter("cairn_metering_commits", "Transactions that stored usage", registry=registry)
        self.errors = Counter("cairn_metering_errors", "Faults of the program while it counted", registry=registry)
        self.gaps = Counter("cairn_metering_gaps", "Stretches of history that could not be followed", registry=registry)
