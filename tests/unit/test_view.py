"""A fork shows exactly what the live view would show had the transaction been committed; indexes follow records."""

from __future__ import annotations

import random
from typing import Any

import pytest
from cairn.controller.store import view as view_module
from cairn.controller.store.base import Txn, View
from cairn.controller.store.indexes import INDEXES
from cairn.controller.store.view import LiveView
from cairn.proto import kinds
from cairn.proto.kinds import Kind
from cairn.proto.owners import set_owner
from cairn.proto.v1.image_pb2 import ImageContent
from cairn.proto.v1.port_pb2 import Port
from cairn.proto.v1.vm_pb2 import Placement, Vm
from google.protobuf.message import DecodeError

KINDS: list[Kind[Any]] = [kinds.PORT, kinds.PLACEMENT, kinds.IMAGE_CONTENT, kinds.VM]
VALUES = ["", "a", "b", "c"]


def commit(view: LiveView, txn: Txn) -> None:
    """What the cache does with a batch."""
    revision = view.revision + 1
    for key in txn.deletes:
        kind, id = kinds.split(key)
        view.table(kind).delete(id)
    for key, put in txn.puts.items():
        kind, id = kinds.split(key)
        before = view.record(kind, id)
        view.table(kind).put(id, put.value, revision, before.create_revision if before else revision)
    view.advance(revision)


def random_txn(rng: random.Random) -> Txn:
    txn = Txn("test")
    for _ in range(rng.randint(1, 6)):
        kind, id = rng.choice(KINDS), f"r{rng.randint(0, 9)}"
        txn.writer = kind.writer
        if rng.random() < 0.3:
            txn.delete(kind, id)
        else:
            txn.put(kind, id, random_record(kind, rng))
    return txn


def random_record(kind: Kind[Any], rng: random.Random) -> Any:
    if kind is kinds.PORT:
        port = Port()
        port.spec.subnet, port.spec.vpc, vm = (rng.choice(VALUES) for _ in range(3))
        # As this release writes it, or the one before.
        if rng.random() < 0.5:
            set_owner(port, "vm", vm)
        else:
            port.spec.vm = vm
        return port
    if kind is kinds.PLACEMENT:
        return Placement(node=rng.choice(VALUES))
    if kind is kinds.IMAGE_CONTENT:
        return ImageContent(nodes=rng.sample(VALUES[1:], rng.randint(0, 3)))
    vm = Vm(project=rng.choice(VALUES))
    vm.spec.image = rng.choice(VALUES)
    return vm


def everything(view: View) -> dict[str, Any]:
    """All a view can be asked about the kinds under test."""
    shown: dict[str, Any] = {"revision": view.revision}
    for kind in KINDS:
        ids = sorted(view.ids(kind))
        shown[f"{kind.name} ids"] = ids
        shown[f"{kind.name} count"] = view.count(kind)
        shown[f"{kind.name} records"] = [view.record(kind, id) for id in ids]
        shown[f"{kind.name} revisions"] = [view.revision_of(kind, f"r{n}") for n in range(10)]
        shown[f"{kind.name} all"] = sorted(str(message) for message in view.all(kind))
        shown[f"{kind.name} get"] = [view.get(kind, f"r{n}") for n in range(10)]
        for index in INDEXES[kind.name]:
            for value in VALUES:
                wanted = f"vm/{value}" if index == "owner" and value else value
                shown[f"{kind.name} by {index}={value}"] = view.by(kind, index, wanted)
                assert view.count_by(kind, index, wanted) == 0 or wanted in view.values(kind, index)
                shown[f"{kind.name} count by {index}={value}"] = view.count_by(kind, index, wanted)
    return shown


@pytest.mark.parametrize("seed", range(40))
def test_a_fork_equals_the_commit(seed: int) -> None:
    rng = random.Random(seed)
    live = LiveView()
    for _ in range(rng.randint(0, 15)):
        commit(live, random_txn(rng))
    before = everything(live)
    first, second = random_txn(rng), random_txn(rng)
    fork = live.fork(first)
    fork_of_fork = fork.fork(second)
    forked, twice = everything(fork), everything(fork_of_fork)
    assert everything(live) == before
    commit(live, first)
    assert everything(live) == forked
    commit(live, second)
    assert everything(live) == twice


@pytest.mark.parametrize("seed", range(5))
def test_indexes_follow_records(seed: int) -> None:
    rng = random.Random(seed)
    live = LiveView()
    for _ in range(200):
        commit(live, random_txn(rng))
    for kind in KINDS:
        records = {id: live.get(kind, id) for id in live.ids(kind)}
        for index, extract in INDEXES[kind.name].items():
            for value in VALUES:
                expected = sorted(id for id, message in records.items() if value in extract(id, message))
                assert live.by(kind, index, value) == expected
                assert live.count_by(kind, index, value) == len(expected)


def test_records_are_decoded_once() -> None:
    live = LiveView()
    commit(live, Txn("api").put(kinds.VM, "i-1", Vm(name="web")))
    assert live.get(kinds.VM, "i-1") is live.get(kinds.VM, "i-1")
    fork = live.fork(Txn("api").put(kinds.VM, "i-2", Vm(name="db")))
    assert fork.get(kinds.VM, "i-1") is live.get(kinds.VM, "i-1")
    assert fork.get(kinds.VM, "i-2") is fork.get(kinds.VM, "i-2")


def test_messages_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at everything must not turn a cloud of bytes into a cloud of messages."""
    monkeypatch.setattr(view_module, "RECENT_MAX", 10)
    live = LiveView()
    for number in range(100):
        commit(live, Txn("api").put(kinds.VM, f"i-{number}", Vm(name=f"web{number}")))
    kept = [live.get(kinds.VM, f"i-{number}") for number in range(100)]
    assert [vm.name for vm in kept if vm is not None] == [f"web{number}" for number in range(100)]
    same = [number for number in range(100) if live.get(kinds.VM, f"i-{number}") is kept[number]]
    assert len(same) <= 20
    assert [vm.name for vm in live.all(kinds.VM)] == [f"web{number}" for number in range(100)]


def test_a_record_that_changed_is_not_shown_as_it_was() -> None:
    live = LiveView()
    for name in ("web", "db", "web"):
        commit(live, Txn("api").put(kinds.VM, "i-1", Vm(name=name, project=name)))
        assert [vm.name for vm in (live.get(kinds.VM, "i-1"), *live.all(kinds.VM)) if vm is not None] == [name, name]
        assert live.by(kinds.VM, "project", name) == ["i-1"]
    commit(live, Txn("api").delete(kinds.VM, "i-1"))
    assert (live.get(kinds.VM, "i-1"), live.record(kinds.VM, "i-1"), live.revision_of(kinds.VM, "i-1")) == (None, None, 0)


def test_an_unreadable_value_changes_nothing() -> None:
    live = LiveView()
    commit(live, Txn("placement").put(kinds.PLACEMENT, "i-1", Placement(node="n1")))
    with pytest.raises(DecodeError):
        live.table(kinds.PLACEMENT).put("i-1", b"\xff\xff\xff", 9, 9)
    assert live.by(kinds.PLACEMENT, "node", "n1") == ["i-1"]
    assert live.revision_of(kinds.PLACEMENT, "i-1") == 1


def test_an_unknown_index_is_an_error() -> None:
    live = LiveView()
    with pytest.raises(KeyError):
        live.by(kinds.PLACEMENT, "colour", "red")
