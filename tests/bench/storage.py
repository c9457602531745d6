"""Volumes in a pool of a real Ceph against bare librbd on the same one: `python -m tests.bench.storage`.

One OSD that keeps all in memory, so what is measured is what we add to each call, not a disk. Rounds alternate.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

from cairn.proto.seams import SystemClock, SystemIds
from cairn.proto.v1.agent_pb2 import DesiredVolume
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.storage.local import LocalImages
from cairn.storage.rbd import RbdVolumes
from cairn.storage.rbd_pool import PYTHON, Place, RbdPool

from tests.bench.report import line, skipped, title
from tests.conformance.storage_kit import chunked, digest_of
from tests.lab.ceph import Ceph, missing

POOL = "vms"
ROUNDS = 3
EACH = 30
AT_ONCE = 100
GIB = 1 << 30
CONTENT = bytes(range(1, 256)) * 4096


async def timed(act: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await act()
    return time.perf_counter() - start


async def ours(volumes: RbdVolumes, digest: str, first: int) -> dict[str, list[float]]:
    """Seconds of each call."""
    took: dict[str, list[float]] = defaultdict(list)
    for number in range(first, first + EACH):
        blank = DesiredVolume(id=f"vol-{number:08d}", size_bytes=GIB, generation=1)
        copy = DesiredVolume(id=f"vol-c{number:07d}", size_bytes=len(CONTENT), image_digest=digest, generation=1)
        took["create"].append(await timed(lambda blank=blank: volumes.create(blank)))
        took["clone"].append(await timed(lambda copy=copy: volumes.create(copy)))
        took["remove"].append(await timed(lambda blank=blank: volumes.delete(blank.id, generation=1)))
        await volumes.delete(copy.id, generation=1)
    return took


def raw(place: Place, number: int) -> dict[str, list[float]]:
    """Seconds of each call of the library."""
    script = str(Path(__file__).with_name("raw_rbd.py"))
    command = [*PYTHON, "-I", script, place.conf, place.user, place.pool, str(EACH), f"raw{number}"]
    took: dict[str, list[float]] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return took


async def measure(place: Place, folder: Path) -> None:
    images, pool = LocalImages(folder / "images"), RbdPool(place)
    volumes = RbdVolumes(pool, images, SystemIds(), SystemClock(), node="bench")
    digest = digest_of(CONTENT)
    await images.put(digest, len(CONTENT), ImageFormat.IMAGE_FORMAT_RAW, chunked(CONTENT))
    await ours(volumes, digest, 10_000)
    mine: dict[str, list[float]] = defaultdict(list)
    bare: dict[str, list[float]] = defaultdict(list)
    for number in range(ROUNDS):
        for took, of in ((raw(place, number), bare), (await ours(volumes, digest, 20_000 + 100 * number), mine)):
            for what, seconds in took.items():
                of[what] += seconds
    for what, aim in (("create", "1.5"), ("clone", "1.5"), ("remove", "")):
        ms = [1000 * statistics.median(of[what]) for of in (mine, bare)]
        line(f"a volume: {what}", ms[0], "ms", baseline=("librbd", ms[1]), aim=aim and f"{aim} x")
    many = [DesiredVolume(id=f"vol-m{number:07d}", size_bytes=GIB, generation=1) for number in range(AT_ONCE)]
    took_s = await timed(lambda: asyncio.gather(*(volumes.create(volume) for volume in many)))
    line(f"{AT_ONCE} volumes made at once", AT_ONCE / took_s, "/s")
    took_s = await timed(lambda: volumes.observe([volume.id for volume in many]))
    line(f"{AT_ONCE} volumes looked at, the first time", 1000 * took_s, "ms")
    took_s = await timed(lambda: volumes.observe([volume.id for volume in many]))
    line(f"{AT_ONCE} volumes looked at again", 1000 * took_s, "ms")
    await pool.close()


def main() -> None:
    title("Volumes in Ceph against librbd")
    if lacks := missing():
        skipped(f"no Ceph here: {lacks}")
        return
    with tempfile.TemporaryDirectory(prefix="cairn-bench-") as scratch, Ceph(Path(scratch) / "ceph") as ceph:
        ceph.make_pool(POOL)
        asyncio.run(measure(Place(str(ceph.enrol("cairn", POOL)), "cairn", POOL), Path(scratch)))


if __name__ == "__main__":
    sys.exit(main())
