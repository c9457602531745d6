"""No secret is ever logged: not one that was made, not one a user gave, and no private key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit


class NoSecret(Checker):
    """Looks at every line, and at records."""

    def line(self, cloud: Cloud, text: str) -> Iterator[str]:
        """Look for each secret."""
        if "PRIVATE KEY" in text:
            yield f"a private key was logged: {text[:60]}..."
        for secret in cloud.secrets:
            if secret in text:
                yield f"a secret was logged: {text.replace(secret, '***')[:200]}"

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """Records hold hashes of secrets, or hold them sealed."""
        for change in commit.changes if cloud.secrets else ():
            if change.after is not None:
                content: bytes = change.after.SerializeToString()
                if any(secret.encode() in content for secret in cloud.secrets):
                    yield f"{change.key} holds a secret"

    def listed(self, cloud: Cloud, who: str, kind: str, objects: Any) -> Iterator[str]:
        """Lists show none either."""
        for each in objects if cloud.secrets else ():
            text = str(each)
            if any(secret in text for secret in cloud.secrets):
                yield f"{who} shows a secret in {kind} {getattr(each, 'id', '')}"
