"""What was decided on a record is written only over that record: a transaction that overwrites names the revision it saw.

Without that, two controllers that decide at the same moment undo each other. Reports are no decisions: they are the newest of
one stream, whose session the transaction names instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

# Written on the word of a node's own stream.
_TOLD = ("observed", "node_facts", "node_pools")
# Made under ids that nobody else has.
_EVENTS = ("event", "event_of")
# Nothing is decided on it: it says when the newest of all commits was that count, whoever made it.
_CLOCK = ("usage_clock",)
# Kind -> what is checked in its stead: why a VM is where it is goes with its placement, a chain's record with its end, and who
# came last with the session he came with.
_GUARDS = {
    "decision": "placement", "audit": "audit_head", "node_last": "node_session", "controller_last": "controller",
}  # fmt: skip
# The same of what is all of one writer, who looks whether he still is: the key that he checks.
_ONE_GUARD = "usage_cursor/self"
_ITS = ("usage_open", "usage_day", "usage_month", "usage_gap")


def _guard(key: str) -> str:
    """Return the key that is checked where one is written."""
    kind, _, id = key.partition("/")
    if kind in _ITS:
        return _ONE_GUARD
    return f"{_GUARDS[kind]}/{id.partition('/')[0]}" if kind in _GUARDS else key


class Checked(Checker):
    """Looks at what each transaction checked."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Every record that was overwritten or made was checked."""
        if commit.checked is None:
            return
        for change in commit.changes:
            if change.after is None or change.kind in (*_TOLD, *_EVENTS, *_CLOCK) or _guard(change.key) in commit.checked:
                continue
            yield f"{change.key} was {'made' if change.before is None else 'overwritten'} without looking"
        for change in commit.changes:
            if change.kind in _TOLD and change.after is not None and commit.writers:
                session = f"node_session/{change.id.partition('/')[0]}"
                if session not in commit.checked and session not in commit.writers:
                    yield f"{change.key} was written by a stream that did not look whether it still speaks for its node"
