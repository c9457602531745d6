"""The agent's metrics in Prometheus' format, read from its parts when asked for; over HTTPS, to holders of a certificate."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cairn.agent.identity import Files
from cairn.proto.metrics import HttpsMetrics
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from cairn.agent.app import Agent

PREFIX: Final = "cairn_agent_"


class AgentCollector(Collector):
    """Reads an agent's parts at each scrape."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        agent = self._agent
        gauges = {
            "sync_connected": ("1 while a controller's snapshot was accepted on the open stream.", agent.sync.synced.is_set()),
            "sync_silence_seconds": ("For how long no controller has been heard.", agent.now_s() - agent.sync.heard_s),
            "held_revision": ("Store revision of the newest accepted change.", agent.ledger.held[1]),
            "ledger_wait_seconds": (
                "For how long the disk has been busy with the write of the ledger that runs now; 0: none does.",
                agent.ledger.waits_s(agent.now_s()),
            ),
            "desired_objects": ("Objects this node must hold.", len(agent.ledger.desired)),
            "queue_depth": ("Keys due or handled now.", agent.loop.work.depth + agent.loop.pulls.depth),
            "resident_memory_bytes": ("Memory of this process.", _resident_bytes()),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(PREFIX + name, text, value=float(value))
        guests = GaugeMetricFamily(PREFIX + "guests", "Guests by what they do.", labels=["state"])
        for state, count in Counter(domain.state.name.lower() for domain in list(agent.world.domains.values())).items():
            guests.add_metric([state], count)
        yield guests
        actions = CounterMetricFamily(PREFIX + "actions", "Actions planned and applied.", labels=["domain"])
        actions.add_metric(["guests"], agent.guests.actions)
        actions.add_metric(["networks"], agent.networks.actions)
        yield actions
        counters = {
            "reports_sent": ("Reports, events and facts sent.", agent.reports.sent),
            "keys_handled": ("Observe, plan, apply, report: how often.", agent.loop.handled),
            "keys_failed": ("How often that failed.", agent.loop.failed),
            "handling_seconds": ("Time spent on it, all keys together.", agent.loop.handling_s),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(PREFIX + name, text, value=float(value))


class MetricsServer:
    """Serves until closed; `reload` takes up a renewed certificate."""

    def __init__(self, agent: Agent, address: str, files: Files) -> None:
        self._address, self._files = address, files
        self._registry = CollectorRegistry()
        self._registry.register(AgentCollector(agent))
        self._server = self._start()

    def reload(self) -> None:
        """Serve with the certificate that is in the files now."""
        self.close()
        self._server = self._start()

    def close(self) -> None:
        """Stop serving."""
        self._server.close()

    def _start(self) -> HttpsMetrics:
        files = self._files
        return HttpsMetrics(self._address, self._registry, cert=files.cert, key=files.key, ca=files.ca)


def _resident_bytes() -> int:
    """Return the resident set size of this process (proc(5), statm: second field, in pages)."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - one line of procfs
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
