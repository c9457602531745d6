"""Programming the dataplane against the kernel's own tools doing the same entries: `python -m tests.bench.net` (as root).

Both sides run in the same minute on the same kernel, so the ratio means something where the milliseconds do not.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from cairn.net.base import Wanted
from cairn.net.belief import Belief
from cairn.net.netlink import NetlinkDataplane
from cairn.net.plan import plan, plan_forwards
from cairn.proto.v1.agent_pb2 import DesiredForward

from tests.bench import report
from tests.bench.report import skipped, title
from tests.conformance.net_kit import Card, RealNode, Vpc, fresh_prefix, id_of, missing, real_nodes, run

FORWARDS = 1000
ROUNDS = 5
BLUE, GREEN = id_of("vxnet", 1), id_of("vxnet", 2)
OURS = Vpc(1, {BLUE: "10.0.0.0/20"}, 5000)
THEIRS = Vpc(2, {GREEN: "10.0.0.0/20"}, 6000)
NODES = {1: "172.31.0.1", 2: "172.31.0.2"}


def forwards(vpc: Vpc, subnet: str) -> dict[str, DesiredForward]:
    cards = [Card(1000 + n, vpc.id, subnet, f"10.0.{2 + n // 250}.{1 + n % 250}/20", 2) for n in range(FORWARDS)]
    return {card.id: card.forward(NODES[2]) for card in cards}


def scripts(entries: dict[str, DesiredForward], subnet: str, verb: str, folder: Path) -> tuple[str, str]:
    """The same entries for `ip -batch` and `bridge -batch`."""
    bridge, tunnel = "br-" + subnet.rpartition("-")[2], "vx-" + subnet.rpartition("-")[2]
    ip_lines, bridge_lines = [], []
    for forward in entries.values():
        ip_lines.append(f"neigh {verb} {forward.addresses[0]} lladdr {forward.mac} dev {bridge} nud permanent")
        ip_lines.append(f"route {verb} {forward.addresses[0]}/32 via {forward.transit_address} dev l3x")
        bridge_lines.append(f"fdb {verb} {forward.mac} dev {tunnel} dst {forward.vtep} self permanent")
        bridge_lines.append(f"fdb {verb} {forward.mac} dev {tunnel} master static")
    paths = folder / f"ip-{verb}", folder / f"bridge-{verb}"
    for path, lines in zip(paths, (ip_lines, bridge_lines), strict=True):
        path.write_text("\n".join(lines) + "\n")
    return str(paths[0]), str(paths[1])


async def timed(job: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await job()
    return (time.perf_counter() - start) * 1000


async def tools(*commands: tuple[str, ...]) -> None:
    for command in commands:
        await asyncio.to_thread(run, *command)


async def apply(dataplane: NetlinkDataplane, wanted: Wanted) -> None:
    results = await dataplane.apply(plan(wanted, await dataplane.observe()))
    assert all(result.error is None for result in results)


async def apply_part(dataplane: NetlinkDataplane, belief: Belief, wanted: Wanted, changed: set[str]) -> None:
    part = belief.part(wanted, changed, ())
    assert part is not None
    actions = plan_forwards(*part)
    results = await dataplane.apply(actions)
    assert all(result.error is None for result in results)
    belief.did(actions)


def line(what: str, ours: list[float], baseline: list[float], name: str) -> dict[str, object]:
    mine, other = statistics.median(ours), statistics.median(baseline)
    report.line(what, mine, "ms", baseline=(name, other))
    return {"what": what, "ms": mine, "baseline": name, "baseline_ms": other, "ratio": mine / other}


async def measure(node: RealNode, other: RealNode, folder: Path) -> list[dict[str, object]]:
    dataplane = node.dataplane()
    networks = {OURS.id: OURS.network(1, NODES)}
    empty, full = Wanted(networks), Wanted(networks, {}, forwards(OURS, BLUE))
    await apply(dataplane, empty)
    second = other.dataplane()
    await apply(second, Wanted({THEIRS.id: THEIRS.network(2, NODES)}))
    await second.close()
    inside = other.vpc_prefix + THEIRS.id.rpartition("-")[2]
    added = scripts(forwards(THEIRS, GREEN), GREEN, "replace", folder)
    removed = scripts(forwards(THEIRS, GREEN), GREEN, "del", folder)
    names = ("add", "add0", "look", "look0", "remove", "remove0", "again", "one", "one0")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        actions = plan(full, await dataplane.observe())
        times["add"].append(await timed(lambda actions=actions: dataplane.apply(actions)))  # type: ignore[misc]
        times["add0"].append(
            await timed(lambda: tools(("ip", "-n", inside, "-batch", added[0]), ("bridge", "-n", inside, "-batch", added[1])))
        )
        times["look"].append(await timed(dataplane.observe))
        times["look0"].append(
            await timed(
                lambda: tools(
                    *(("ip", "-n", inside, "-j", what) for what in ("addr", "neigh", "route")),
                    ("ip", "-n", inside, "-j", "-d", "link"), ("bridge", "-n", inside, "-j", "fdb"),
                )
            )
        )  # fmt: skip
        belief, last = Belief(await dataplane.observe()), max(full.forwards)
        fewer = Wanted(networks, {}, {id: each for id, each in full.forwards.items() if id != last})
        for wanted in (fewer, full):
            times["one"].append(await timed(partial(apply_part, dataplane, belief, wanted, {last})))
        for wanted in (fewer, full):
            times["one0"].append(await timed(partial(apply, dataplane, wanted)))
        times["again"].append(await timed(lambda: apply(dataplane, full)))
        actions = plan(empty, await dataplane.observe())
        times["remove"].append(await timed(lambda: apply(dataplane, empty)))
        run("ip", "-n", inside, "-batch", removed[0])
        run("bridge", "-n", inside, "-batch", removed[1])
    result = [
        line(f"program {FORWARDS} forwards", times["add"], times["add0"], "ip -batch + bridge -batch"),
        line(f"observe {FORWARDS} forwards", times["look"], times["look0"], "ip -j, bridge -j, without the rules"),
        line(f"one forward changed of {FORWARDS}", times["one"], times["one0"], "observe + plan + apply of everything"),
        line("observe + plan with nothing to do", times["again"], times["look0"], "ip -j, bridge -j, without the rules"),
        line(f"observe + plan + remove {FORWARDS}", times["remove"], times["add0"], "ip -batch + bridge -batch (adding)"),
    ]
    await dataplane.close()
    return result


def main() -> int:
    title("Network")
    if reason := missing():
        skipped(reason)
        return 0
    with tempfile.TemporaryDirectory() as folder, real_nodes(fresh_prefix(), 2) as (node, other):
        result = asyncio.run(measure(node, other, Path(folder)))
    if "--json" in sys.argv:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.TimeoutExpired as error:
        sys.exit(str(error))
