"""The baseline of storage.py: the same calls of librbd with nothing around them. Run by the Python that has python3-rbd.

python3 -I raw_rbd.py CONF USER POOL ROUNDS PREFIX    # prints {"create": [seconds, ...], "clone": [...], "remove": [...]}
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import rados
import rbd

FEATURES = 1 | 4 | 8 | 16 | 32
SIZE = 1 << 30


def timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    conf, user, pool, rounds, prefix = sys.argv[1:6]
    cluster = rados.Rados(conffile=conf, rados_id=user)
    cluster.conf_set("rbd_default_clone_format", "2")
    cluster.connect()
    io, images = cluster.open_ioctx(pool), rbd.RBD()
    parent = f"{prefix}-parent"
    images.create(io, parent, SIZE, old_format=False, features=FEATURES)
    with rbd.Image(io, parent) as image:
        image.create_snap("base")
    took: dict[str, list[float]] = {"create": [], "clone": [], "remove": []}
    for number in range(int(rounds)):
        blank, clone = f"{prefix}-{number}", f"{prefix}-{number}c"
        took["create"].append(timed(partial(images.create, io, blank, SIZE, old_format=False, features=FEATURES)))
        took["clone"].append(timed(partial(images.clone, io, parent, "base", io, clone, features=FEATURES)))
        took["remove"].append(timed(partial(images.remove, io, blank)))
        images.remove(io, clone)
    print(json.dumps(took))


if __name__ == "__main__":
    main()
