"""Each kind of record has one component that writes it. The table is the design's, not the product's registry.

Others may remove some kinds; leased ones go by themselves; an event is written by whoever has something to tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

# Kind -> writers; who besides may delete; whether a lease may end it.
WRITERS: Final[dict[str, tuple[str, str, bool]]] = {
    # What users ask for.
    "project": ("api", "", False),
    "image": ("api", "garbage", False),
    "vpc": ("api", "garbage", False),
    "subnet": ("api", "garbage", False),
    "port": ("api", "garbage", False),
    "volume": ("api", "garbage", False),
    "vm": ("api", "garbage", False),
    "node": ("api", "", False),
    "user": ("api", "", False),
    "role": ("api", "", False),
    "binding": ("api", "garbage", False),
    "api_token": ("api", "garbage", False),
    "identity_provider": ("api", "", False),
    "quota": ("api", "", False),
    "quota_use": ("api", "", False),
    "price_list": ("api", "", False),
    "job": ("api", "garbage", False),
    "secret": ("api", "garbage", False),
    "join_token": ("api", "garbage", False),
    "name": ("api", "garbage", False),
    "vni": ("api", "garbage", False),
    "erasure": ("api", "garbage", False),
    "request": ("api", "", True),
    "plan": ("api", "", True),
    "audit": ("api", "audit", False),
    "audit_head": ("api", "", False),
    "audit_cut": ("audit", "", False),
    # What is decided.
    "port_binding": ("ports", "", False),
    "address": ("ports", "", False),
    "placement": ("placement", "", False),
    "decision": ("placement", "", False),
    "node_claims": ("placement", "", False),
    "pool_claims": ("placement", "", False),
    "volume_placement": ("placement", "", False),
    "assignment": ("assignments", "", False),
    "opening": ("openings", "", False),
    "node_loss": ("assignments", "", False),
    "node_told": ("node_events", "garbage", False),
    "purge": ("garbage", "", False),
    "image_content": ("jobs", "garbage", False),
    "job_state": ("jobs", "garbage", False),
    # What nodes report, and who is alive.
    "observed": ("sync", "garbage", False),
    "unknown": ("sync", "garbage", False),
    "node_heard": ("sync", "garbage", False),
    "node_facts": ("sync", "garbage", False),
    "node_pools": ("sync", "garbage", False),
    "node_session": ("sync", "", True),
    "node_last": ("sync", "garbage", False),
    "controller_last": ("peers", "api", False),
    "controller": ("peers", "", True),
    "controller_member": ("members", "api", False),
    "cluster": ("peers", "", False),
    "usage_clock": ("metering", "", False),
    "usage_cursor": ("metering", "", False),
    "usage_open": ("metering", "", False),
    "usage_day": ("metering", "", False),
    "usage_month": ("metering", "", False),
    "usage_gap": ("metering", "", False),
    "event": ("*", "*", True),
    "event_of": ("*", "*", True),
}


class SoleWriter(Checker):
    """Looks at who wrote what."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Look at each change."""
        if commit.writers is None:
            return
        for change in commit.changes:
            if change.kind not in WRITERS:
                yield f"nobody is known to write {change.kind}, and {change.key} was written"
                continue
            writer, deleter, leased = WRITERS[change.kind]
            by, gone = commit.writers.get(change.key, ""), change.after is None
            lawful = by in {writer, deleter} if gone else by == writer
            if (not by and not (gone and leased)) or (by and not lawful and writer != "*"):
                yield f"{change.key} was {'removed' if gone else 'written'} by {by or 'nobody'}; only {writer} may"
