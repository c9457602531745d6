"""All figures in one run, or some: `python -m tests.bench [NAME...]`. What cannot be measured here is skipped, saying why."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tests.bench import access, api, boot, fanout, memory, metering, net, placement, start, storage
from tests.bench.report import title

ALL: dict[str, Callable[[], object]] = {
    "placement": placement.main,
    "api": api.main,
    "boot": boot.main,
    "memory": memory.main,
    "net": net.main,
    "fanout": fanout.main,
    "start": start.main,
    "access": access.main,
    "metering": metering.main,
    "storage": storage.main,
}


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in ALL]:
        print(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    started = time.perf_counter()
    for name in names or list(ALL):
        ALL[name]()
    title(f"{time.perf_counter() - started:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
