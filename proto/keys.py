"""Keys of desired objects: "vm/<id>", "forward/<vpc>/<port>". A name is a key, or a kind with its slash: all of that."""

from __future__ import annotations

from collections.abc import Container


def kind_of(key: str) -> str:
    """Return the kind in a key."""
    return key.partition("/")[0]


def covers(names: Container[str], key: str) -> bool:
    """Tell whether a key is among names."""
    return key in names or f"{kind_of(key)}/" in names
