"""Keys of desired objects: "vm/<id>", "forward/<vpc>/<port>". A name is a key, or a kind with its slash: all of that."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

# Among the names a node is to keep: what a restored store does not know of other nodes is not decided about everywhere yet.
UNSETTLED: Final = "restored/"


def kind_of(key: str) -> str:
    """Return the kind in a key."""
    return key.partition("/")[0]


def covers(names: Container[str], key: str) -> bool:
    """Tell whether a key is among names."""
    return key in names or f"{kind_of(key)}/" in names
