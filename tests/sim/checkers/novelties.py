"""What a newer release wrote into an object of a user's stays in it when this one writes the object back."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit
from tests.sim.releases import NOVELTY

_KINDS = (
    "vm",
    "volume",
    "port",
    "vpc",
    "subnet",
    "image",
    "node",
    "project",
    "user",
    "role",
    "binding",
    "api_token",
    "identity_provider",
)


class Novelties(Checker):
    """Looks at objects that had something this release does not know."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """It is still there."""
        for change in commit.changes:
            if change.kind not in _KINDS or change.before is None or change.after is None:
                continue
            if NOVELTY in change.before.SerializeToString() and NOVELTY not in change.after.SerializeToString():
                yield f"{change.key} has lost what a newer release wrote in it"
