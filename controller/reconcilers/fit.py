"""Which node for a VM: the filters that refuse nodes, the scores that rank the rest, and the sentence that tells.

Filters run in order on what is left; each counts what it refused, so considered = refused by each + fitting, always. To add
one, write a small function and put it in the list. Scores give 0 (bad) to 1 (good) per node; the weighted sum decides. The
default spreads: the node with the largest share of CPU and memory left. `scatter` is worth less than any real difference
between a few nodes, but with many it keeps deciders that look at the same moment from all wanting the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

import numpy as np
from cairn.controller.model.nodes import hash_of
from cairn.controller.reconcilers.candidates import Amounts, Candidates, Mask
from cairn.controller.words import NAMES_MAX, names, several, size
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.v1.common_pb2 import Decision
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.intp]
Values: TypeAlias = NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64, np.uint64)
TOP: Final = 5
SCATTER_PER_NODE: Final = 1e-5
SCATTER_MAX: Final = 0.01
# Of 64 bits, those that a float cannot tell apart; and what makes the others a number below 1.
_LOW_BITS: Final = np.uint64(11)
_TO_ONE: Final = 1.0 / (1 << 53)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a VM asks of its node."""

    vm: str
    cpus: int
    memory_bytes: int
    # Bytes of its volumes that are nowhere yet, by the type of pool they go in.
    disks: Mapping[str, int]
    arch: str
    image_arch: str = ""
    # Node id it is pinned to, and that node's name.
    node: str = ""
    node_name: str = ""
    selector: Mapping[str, str] = field(default_factory=dict)
    # What the node's agent must know because of its volumes.
    needs: frozenset[str] = frozenset()
    # Pools that hold a volume of it.
    pools: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Filter:
    """Refuses nodes. keep: which pass; None: all. why: of one refused node. lack: of all of them. advice: a way out."""

    name: str
    keep: Callable[[Candidates, Wanted], Mask | None]
    why: Callable[[Candidates, Wanted, int], str]
    lack: Callable[[Candidates, Wanted, Rows], str]
    advice: Callable[[Candidates, Wanted, Rows], str]


@dataclass(frozen=True, slots=True)
class Score:
    """Ranks nodes: 0 to 1 for each of some rows. weight: for a table of that many nodes."""

    name: str
    weight: Callable[[int], float]
    rank: Callable[[Candidates, Wanted, Rows], Values]


def _named(table: Candidates, rows: Rows) -> str:
    return names([table.names[row] for row in rows[:NAMES_MAX]], len(rows))


def _simple(
    name: str,
    keep: Callable[[Candidates, Wanted], Mask | None],
    one: str,
    many: str,
    advice: Callable[[Candidates, Wanted, Rows], str],
) -> Filter:
    """A filter whose reason is the same phrase for each node, as of one and of many."""

    def fill(text: str, wanted: Wanted) -> str:
        return text.format(
            arch=wanted.arch,
            node=wanted.node_name or wanted.node,
            selector=selector_text(wanted),
            needs=", ".join(sorted(wanted.needs)),
            pools=", ".join(sorted(wanted.pools)),
        )

    def why(table: Candidates, wanted: Wanted, row: int) -> str:
        return f"{table.names[row]} {fill(one, wanted)}"

    def lack(table: Candidates, wanted: Wanted, rows: Rows) -> str:
        return f"{_named(table, rows)} {fill(one if len(rows) == 1 else many, wanted)}"

    return Filter(name, keep, why, lack, advice)


def _room(
    name: str,
    noun: str,
    free: Callable[[Candidates], Amounts],
    wants: Callable[[Wanted], int],
    text: Callable[[int], str],
    round_down: int,
) -> Filter:
    """A filter on an amount: enough must be free."""

    def amount(table: Candidates, row: int) -> int:
        return max(0, int(free(table)[row]))

    def why(table: Candidates, wanted: Wanted, row: int) -> str:
        return f"{table.names[row]}: {text(amount(table, row))} free, {text(wants(wanted))} wanted"

    def roomiest(table: Candidates, rows: Rows) -> int:
        return int(rows[int(np.argmax(free(table)[rows]))])

    def lack(table: Candidates, wanted: Wanted, rows: Rows) -> str:
        row = roomiest(table, rows)
        verb, most = "lacks" if len(rows) == 1 else "lack", text(amount(table, row))
        there = f"{most} free" if len(rows) == 1 else f"the most free is {most} on {table.names[row]}"
        return f"{_named(table, rows)} {verb} {noun}: {there}, {text(wants(wanted))} wanted"

    def advice(table: Candidates, _wanted: Wanted, rows: Rows) -> str:
        most = amount(table, roomiest(table, rows)) // round_down * round_down
        return f"ask for at most {text(most)} or add a node" if most else "free some or add a node"

    return Filter(name, lambda table, wanted: free(table) >= wants(wanted), why, lack, advice)


def selector_text(wanted: Wanted) -> str:
    """Return the node selector as people write it: "zone=a, ssd=yes"."""
    return ", ".join(f"{key}={value}" for key, value in sorted(wanted.selector.items()))


def _none(table: Candidates) -> Mask:
    return np.zeros(len(table), np.bool_)


def _only(table: Candidates, ids: frozenset[str]) -> Mask:
    mask = np.zeros(len(table), np.bool_)
    for id in ids:
        if id in table.row:
            mask[table.row[id]] = True
    return mask


def _arch(table: Candidates, wanted: Wanted) -> Mask:
    mask = table.archs.get(wanted.arch)
    return mask if mask is not None else _none(table)


def _image(table: Candidates, wanted: Wanted) -> Mask | None:
    return None if wanted.image_arch in ("", wanted.arch) else _none(table)


def _known(table: Candidates, wanted: Wanted) -> Mask | None:
    """Its agent knows all that the VM needs."""
    if not wanted.needs:
        return None
    mask: Mask | None = None
    for need in sorted(wanted.needs):
        known = table.known.get(need, _none(table))
        mask = known if mask is None else mask & known
    return mask


def _pinned(table: Candidates, wanted: Wanted) -> Mask | None:
    return _only(table, frozenset((wanted.node,))) if wanted.node else None


def _selected(table: Candidates, wanted: Wanted) -> Mask | None:
    if not wanted.selector:
        return None
    asked = wanted.selector.items()
    return np.array([all(labels.get(key) == value for key, value in asked) for labels in table.labels], np.bool_)


def _home(table: Candidates, wanted: Wanted) -> Mask | None:
    """It holds the local volumes; two on different nodes leave no node at all."""
    if not wanted.pools:
        return None
    return _all_reached(table, [pool for pool in wanted.pools if _is_local(pool)])


def _reached(table: Candidates, wanted: Wanted) -> Mask | None:
    """It reaches the pools of all other volumes."""
    if not wanted.pools:
        return None
    return _all_reached(table, [pool for pool in wanted.pools if not _is_local(pool)])


def _is_local(pool: str) -> bool:
    return pool.startswith(f"{LOCAL_POOL}/")


def _all_reached(table: Candidates, pools: Sequence[str]) -> Mask | None:
    if not pools:
        return None
    mask = table.reaches(pools[0])
    for pool in pools[1:]:
        mask = mask & table.reaches(pool)
    return mask


def _pool_types(wanted: Wanted) -> list[str]:
    return [type for type in wanted.disks if type != LOCAL_POOL]


def _pooled(table: Candidates, wanted: Wanted) -> Mask | None:
    types = _pool_types(wanted)
    if not types:
        return None
    mask = table.free_in(types[0]) >= wanted.disks[types[0]]
    for type in types[1:]:
        mask = mask & (table.free_in(type) >= wanted.disks[type])
    return mask


def _short_of(table: Candidates, wanted: Wanted, rows: Rows) -> tuple[str, int]:
    """Return the type of pool that some rows lack and the most room any of them has in it; -1: they reach none."""
    found = ("", -1)
    for type in _pool_types(wanted):
        free = table.free_in(type)[rows]
        short = free[free < wanted.disks[type]]
        if len(short) and (not found[0] or int(short.max()) > found[1]):
            found = (type, int(short.max()))
    return found


def _pool_why(table: Candidates, wanted: Wanted, row: int) -> str:
    type, free = _short_of(table, wanted, np.array([row], np.intp))
    if free < 0:
        return f"{table.names[row]} reaches no {type} pool"
    return f"{table.names[row]}: {size(free)} free in its {type} pool, {size(wanted.disks[type])} wanted"


def _pool_lack(table: Candidates, wanted: Wanted, rows: Rows) -> str:
    type, free = _short_of(table, wanted, rows)
    if free < 0:
        return f"{_named(table, rows)} {'reaches' if len(rows) == 1 else 'reach'} no {type} pool"
    wants = size(wanted.disks[type])
    return f"{_named(table, rows)} lack{'s' if len(rows) == 1 else ''} room in {type} pools: {size(free)} free, {wants} wanted"


def _pool_advice(table: Candidates, wanted: Wanted, rows: Rows) -> str:
    type, free = _short_of(table, wanted, rows)
    return f"free some in the {type} pool, or make it larger" if free >= 0 else f"give a node access to a {type} pool"


def _cpus(amount: int) -> str:
    return several(amount, "CPU")


MIB: Final = 1 << 20
FILTERS: Final[tuple[Filter, ...]] = (
    _simple(
        "state", lambda table, _: table.ready, "does not answer", "do not answer",
        lambda table, _, rows: f"start the agent on {table.names[rows[0]]}, or join another node (`cairn node token create`)",
    ),
    _simple(
        "claims", lambda table, _: table.counted, "has claims that cannot be read", "have claims that cannot be read",
        lambda _t, _w, _r: "`cairn cluster fsck` names the records and what to do",
    ),
    _simple(
        "cordoned", lambda table, _: ~table.cordoned, "is cordoned", "are cordoned",
        lambda table, _, rows: f"`cairn node uncordon {table.names[rows[0]]}`, or add a node",
    ),
    _simple(
        "hypervisor", lambda table, _: table.hypervisor, "has no hypervisor that answers",
        "have no hypervisor that answers",
        lambda table, _, rows: f"see why with `cairn node show {table.names[rows[0]]}`",
    ),
    _simple(
        "image", _image, "cannot run an image made for another architecture than {arch}",
        "cannot run an image made for another architecture than {arch}",
        lambda _t, wanted, _r: f"take an image for {wanted.arch}",
    ),
    _simple(
        "arch", _arch, "cannot run {arch} guests", "cannot run {arch} guests",
        lambda _t, wanted, _r: f"add a node that runs {wanted.arch} guests",
    ),
    _simple(
        "node", _pinned, "is not {node}, the one asked for", "are not {node}, the one asked for",
        lambda _t, _w, _r: "ask for a node that is there, or for none",
    ),
    _simple(
        "labels", _selected, "lacks the labels {selector}", "lack the labels {selector}",
        lambda _t, wanted, _r: f"give a node the labels {selector_text(wanted)}, or ask for others",
    ),
    _simple(
        "volumes", _home, "does not hold its volumes", "do not hold its volumes",
        lambda _t, _w, _r: "local volumes stay where they are: detach those that are elsewhere",
    ),
    _simple(
        "reach", _reached, "does not reach the pools {pools}", "do not reach the pools {pools}",
        lambda _t, _w, _r: "give a node access to them, or detach the volumes that are there",
    ),
    _room("cpus", "CPUs", lambda table: table.cpus_free, lambda wanted: wanted.cpus, _cpus, 1),
    _room("memory", "memory", lambda table: table.memory_free_bytes, lambda wanted: wanted.memory_bytes, size, MIB),
    _room(
        "disk", "disk space", lambda table: table.disk_free_bytes, lambda wanted: wanted.disks.get(LOCAL_POOL, 0), size, MIB
    ),
    Filter("pool", _pooled, _pool_why, _pool_lack, _pool_advice),
    _simple(
        "agent", _known, "has an agent that does not know {needs}", "have agents that do not know {needs}",
        lambda table, _, rows: f"upgrade the agent on {table.names[rows[0]]}",
    ),
)  # fmt: skip


def _at(column: NDArray[Number], rows: Rows) -> NDArray[Number]:
    """Return some rows of a column; all of it without a copy, as rows are in order and none is there twice."""
    return column if len(rows) == len(column) else column[rows]


def _free_cpus(table: Candidates, wanted: Wanted, rows: Rows) -> Values:
    return _at(table.cpus_share, rows) - wanted.cpus * _at(table.cpu_share, rows)


def _free_memory(table: Candidates, wanted: Wanted, rows: Rows) -> Values:
    return _at(table.memory_share, rows) - wanted.memory_bytes * _at(table.byte_share, rows)


def _scatter(table: Candidates, wanted: Wanted, rows: Rows) -> Values:
    """Order the nodes differently for each VM: the high bits of the product of both hashes (Knuth's multiplicative hashing)."""
    bits = _at(table.hashes, rows) * np.uint64(hash_of(wanted.vm) | 1)
    return (bits >> _LOW_BITS).astype(np.float64) * _TO_ONE


SCORES: Final[tuple[Score, ...]] = (
    Score("free cpus", lambda _: 0.5, _free_cpus),
    Score("free memory", lambda _: 0.5, _free_memory),
    Score("scatter", lambda nodes: min(SCATTER_MAX, nodes * SCATTER_PER_NODE), _scatter),
)


def decide(table: Candidates, wanted: Wanted) -> Decision:
    """Choose a node for a VM and say why; `node` is empty when none fits, and `say` tells what would make it fit. Pure."""
    decision = Decision(considered=len(table))
    left: Mask | None = None
    refusals: list[tuple[Filter, Rows]] = []
    for each in FILTERS:
        kept = each.keep(table, wanted)
        # Most filters refuse nobody, and counting is the fastest way to know.
        if kept is None or np.count_nonzero(kept) == len(kept):
            continue
        # left > kept: in left and not in kept.
        refused = np.flatnonzero(~kept if left is None else left > kept)
        if len(refused):
            refusals.append((each, refused))
            decision.filters.add(name=each.name, refused=len(refused), example=each.why(table, wanted, int(refused[0])))
            left = kept if left is None else left & kept
    rows = table.rows if left is None else np.flatnonzero(left)
    if len(rows):
        _rank(table, wanted, rows, decision)
        decision.say = _chosen(decision, wanted, len(rows))
    else:
        decision.say = _refused(table, wanted, refusals)
    return decision


def _rank(table: Candidates, wanted: Wanted, rows: Rows, decision: Decision) -> None:
    """Fill in the best nodes, best first, and the choice."""
    parts = [(score.name, score.rank(table, wanted, rows) * score.weight(len(table))) for score in SCORES]
    total = parts[0][1] + parts[1][1]
    for _, values in parts[2:]:
        total += values
    for _ in range(min(TOP, len(rows))):
        # A few times the best of those left: sorting 1,000 to keep 5 takes three times as long.
        best = total.argmax()
        row = rows[best]
        worth = {name: values[best] for name, values in parts}
        decision.top.add(node=table.ids[row], node_name=table.names[row], total=total[best], parts=worth)
        total[best] = -np.inf
    decision.node, decision.node_name = decision.top[0].node, decision.top[0].node_name


def _chosen(decision: Decision, wanted: Wanted, fitting: int) -> str:
    if wanted.node:
        return f"on {decision.node_name}, the node asked for"
    if any(_is_local(pool) for pool in wanted.pools):
        return f"on {decision.node_name}, where its volumes are"
    if decision.considered == 1:
        return f"on {decision.node_name}, the only node"
    if fitting == 1:
        return f"on {decision.node_name}, the only one of {decision.considered} nodes that fits"
    return f"on {decision.node_name}: of {fitting} nodes that fit it has the largest share of CPU and memory free"


def _refused(table: Candidates, wanted: Wanted, refusals: list[tuple[Filter, Rows]]) -> str:
    if not len(table):
        return "no node fits: there are no nodes; join one (`cairn node token create`)"
    reasons = [each.lack(table, wanted, rows) for each, rows in refusals]
    # The nodes that got furthest are the nearest to fitting: advise on those.
    last, rows = refusals[-1]
    advice = last.advice(table, wanted, rows)
    return f"no node fits: {several(len(table), 'node')} considered; {'; '.join(reasons)}; {advice}"
