"""A record that cannot be decoded hides or harms nothing else: what is shown, told to nodes, decided and answered."""

from __future__ import annotations

from typing import Any

import pytest
from cairn.controller.api import nouns
from cairn.controller.api.volumes import disk_size
from cairn.controller.model.readable import CannotTell
from cairn.controller.model.unreadable import all_unreadable, newest_revision, touched
from cairn.controller.nodespec import desired, node_objects
from cairn.controller.presence import Presence
from cairn.controller.reconcilers.assignments import Assignments
from cairn.controller.reconcilers.candidates import Candidates
from cairn.controller.reconcilers.claims import claim
from cairn.controller.reconcilers.fit import decide
from cairn.controller.reconcilers.garbage import Garbage
from cairn.controller.reconcilers.placement import Placements, wanted_of
from cairn.controller.reconcilers.ports import Ports
from cairn.controller.store.base import Put, Txn
from cairn.controller.store.cache import Cache
from cairn.controller.store.memory import MemoryBackend, MemoryStore
from cairn.proto import kinds
from cairn.proto.errors import TryAgain
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.image_pb2 import ImageContent
from cairn.proto.v1.secret_pb2 import Secret
from cairn.proto.v1.vm_pb2 import Placement
from cairn.proto.v1.volume_pb2 import VolumeStatus
from structlog.testing import capture_logs

from tests.unit.cloud_kit import Cloud
from tests.unit.test_assignments import VOLUME, WORK, held, shared
from tests.unit.test_sync import N1, agent, world
from tests.unit.test_view_cache import place, running

GARBAGE = b"\xff\xff\xff\xff"


def spoil(key: str) -> Txn:
    return Txn("test", puts={key: Put(GARBAGE)})


# --- the cache ----------------------------------------------------------


async def test_the_last_readable_value_stays_and_is_said_to_be_old() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        good = await store.commit(place("i-1", "n1"))
        with capture_logs() as logs:
            for _ in range(3):
                bad = await store.commit(spoil(kinds.PLACEMENT.key("i-1")))
            await cache.wait_for(bad)
        view = cache.view
        assert view.get(kinds.PLACEMENT, "i-1") == Placement(vm="i-1", node="n1")
        assert view.by(kinds.PLACEMENT, "node", "n1") == ["i-1"]
        assert view.revision_of(kinds.PLACEMENT, "i-1") == good, "whoever decides on it is refused"
        assert newest_revision(view, kinds.PLACEMENT, "i-1") == bad
        assert [(id, each.revision, each.kept) for _, id, each in all_unreadable(view)] == [("i-1", bad, True)]
        assert sum(line["event"] == "record_unreadable" for line in logs) == 1, "not a line per change"
        await cache.wait_for(await store.commit(place("i-1", "n2")))
        assert view.by(kinds.PLACEMENT, "node", "n2") == ["i-1"]
        assert not view.harmed


@pytest.mark.parametrize("then", ["good", "gone"])
async def test_what_was_never_readable_is_not_called_absent(then: str) -> None:
    backend = MemoryBackend()
    store = MemoryStore(backend)
    await store.commit(spoil(kinds.PLACEMENT.key("i-1")))
    await store.commit(place("i-2", "n1"))
    async with running(store) as cache:
        view = cache.view
        assert view.get(kinds.PLACEMENT, "i-1") is None
        assert view.get(kinds.PLACEMENT, "i-2") is not None, "nothing else is hidden"
        assert view.revision_of(kinds.PLACEMENT, "i-1") == 0
        assert not view.unreadable(kinds.PLACEMENT)["i-1"].kept
        assert touched(view, Txn("placement").create(kinds.PLACEMENT, "i-1", Placement())) == ["placement/i-1"]
        assert touched(view.fork(place("i-3", "n1")), place("i-2", "n2")) == []
        txn = place("i-1", "n1") if then == "good" else Txn("placement").delete(kinds.PLACEMENT, "i-1")
        await cache.wait_for(await store.commit(txn))
        assert not view.harmed
        assert (view.get(kinds.PLACEMENT, "i-1") is not None) == (then == "good")


async def test_a_list_read_again_forgets_what_is_gone_and_keeps_what_is_not() -> None:
    backend = MemoryBackend()
    store, cache = MemoryStore(backend), Cache(MemoryStore(backend))
    for id in ("i-1", "i-2"):
        await store.commit(spoil(kinds.PLACEMENT.key(id)))
    await cache._list()
    await store.commit(Txn("placement").delete(kinds.PLACEMENT, "i-1"))
    await cache._list()
    assert cache.view.unreadable(kinds.PLACEMENT).keys() == {"i-2"}


async def test_a_kind_of_a_newer_release_is_logged_once() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        with capture_logs() as logs:
            for number in range(5):
                revision = await store.commit(Txn("test", puts={f"{kinds.ROOT}flavour/f-{number}": Put(b"x")}))
            await cache.wait_for(revision)
        assert [line["event"] for line in logs if "kind" in line["event"]] == ["kind_unknown"]


# --- what nodes are told ----------------------------------------------------------


def damage(cloud: Cloud, kind: AnyKind, id: str) -> None:
    """A record that nobody has ever been able to read."""
    cloud.view.table(kind).delete(id)
    cloud.view.table(kind).keep(id, cloud.view.revision, "garbage")


def cloud_of_two(image: bool = False) -> tuple[Cloud, list[str], list[str]]:
    cloud = Cloud()
    of = cloud.image("demo") if image else ""
    nodes = [cloud.node(name) for name in ("n1", "n2")]
    subnet = cloud.subnet("blue", cloud.vpc("v"))
    vms = [cloud.vm(name, image=of, subnet=subnet, node=node) for name, node in zip(("a", "b"), nodes, strict=True)]
    cloud.settle([Ports(), Placements()])
    return cloud, nodes, vms


@pytest.mark.parametrize(
    ("kind", "id", "kept"),
    [
        (kinds.VM, "i-0000000a", {"vm/i-0000000a", "port/", "network/", "forward/"}),
        (kinds.PLACEMENT, "i-0000000a", {"vm/i-0000000a", "port/", "network/", "forward/"}),
        (kinds.PORT_BINDING, "nic-0000000a", {"vm/i-0000000a", "port/", "network/", "forward/"}),
        (kinds.SUBNET, "vxnet-0000blue", {"vm/i-0000000a", "network/rtr-0000000v"}),
        (kinds.VOLUME, "vol-0000000a", {"vm/i-0000000a", "volume/vol-0000000a", "image/"}),
        (kinds.NODE_FACTS, "node-000000n1", {"vm/i-0000000a", "network/", "forward/"}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_node_is_told_to_keep_what_cannot_be_told(kind: AnyKind, id: str, kept: set[str]) -> None:
    cloud, nodes, _ = cloud_of_two()
    before = node_objects(cloud.view, Presence(cloud.view), nodes[0])
    damage(cloud, kind, id)
    names: set[str] = set()
    after = node_objects(cloud.view, Presence(cloud.view), nodes[0], names)
    assert kept <= names
    gone = {key for key in before.keys() - after.keys() if key not in names and key.partition("/")[0] + "/" not in names}
    assert not gone, "all it held is told or kept"
    assert all(after[key] == before[key] for key in after if key in before and not key.startswith("network/"))


@pytest.mark.parametrize("kind", [kinds.PORT_BINDING, kinds.SUBNET, kinds.PROJECT, kinds.VOLUME], ids=lambda kind: kind.name)
def test_a_missing_record_is_no_word_either(kind: AnyKind) -> None:
    cloud, nodes, vms = cloud_of_two()
    if kind is kinds.PROJECT:
        record = cloud.edit(kinds.VM, vms[0])
        record.project = "prj-gone"
        cloud.put(kinds.VM, vms[0], record)
    else:
        for id in list(cloud.view.ids(kind)):
            cloud.view.table(kind).delete(id)
    with pytest.raises(CannotTell, match="is not there"):
        desired(cloud.view, Presence(cloud.view), nodes[0], f"vm/{vms[0]}", told=True)


@pytest.mark.parametrize("given", [{"ssh_key_count": 1}, {"user_data_bytes": 9}], ids=["keys", "user data"])
def test_a_guest_is_not_begun_without_the_keys_and_user_data_it_was_given(given: dict[str, int]) -> None:
    cloud, nodes, vms = cloud_of_two()
    key = f"vm/{vms[0]}"
    assert not node_objects(cloud.view, Presence(cloud.view), nodes[0])[key].vm.HasField("sealed"), "it was given none"
    vm = cloud.edit(kinds.VM, vms[0])
    for field, value in given.items():
        setattr(vm.spec, field, value)
    cloud.put(kinds.VM, vms[0], vm)
    names: set[str] = set()
    assert key not in node_objects(cloud.view, Presence(cloud.view), nodes[0], names)
    assert key in names
    secret = Secret(id=key, key_id="k", sealed=b"x")
    cloud.put(kinds.SECRET, key, secret)
    assert node_objects(cloud.view, Presence(cloud.view), nodes[0])[key].vm.sealed == secret
    cloud.delete(kinds.SECRET, key)
    cloud.delete_vm(vms[0])
    assert node_objects(cloud.view, Presence(cloud.view), nodes[0])[key].vm.absent, "what is deleted needs none"


@pytest.mark.parametrize(
    ("kind", "id"),
    [
        (kinds.VM, "i-0000000a"), (kinds.PLACEMENT, "i-0000000a"), (kinds.PORT, "nic-0000000a"),
        (kinds.PORT_BINDING, "nic-0000000a"), (kinds.SUBNET, "vxnet-0000blue"), (kinds.VOLUME, "vol-0000000a"),
        (kinds.VOLUME_PLACEMENT, "vol-0000000a"), (kinds.IMAGE, "img-0000demo"), (kinds.NODE_FACTS, "node-000000n1"),
    ],
    ids=lambda value: getattr(value, "name", None),
)  # fmt: skip
def test_a_guest_is_looked_at_again_once_what_it_is_made_of_can_be_read(kind: AnyKind, id: str) -> None:
    """A change asked for meanwhile could not be told to its node; nobody touches the VM after it."""
    cloud, nodes, vms = cloud_of_two(image=True)
    good = cloud.edit(kind, id)
    damage(cloud, kind, id)
    presence = Presence(cloud.view)
    cloud.take()
    cloud.put(kind, id, good)
    touched = presence.follow(cloud.view, cloud.take())
    assert f"vm/{vms[0]}" in touched.objects[nodes[0]]


async def test_a_new_stream_keeps_and_tells_all_once_it_can_be_read() -> None:
    async with world() as at:
        subnet = at.cloud.subnet("blue", at.cloud.vpc("v"))
        vm = at.cloud.vm("a", subnet=subnet, node=N1)
        await at.decided()
        good = (await at.store.read(kinds.VM.key(vm)))[0][0].value
        await at.cache.wait_for(await at.store.commit(spoil(kinds.VM.key(vm))))
        # As after the controller's restart: nobody has read it before.
        record = at.cache.view.unreadable(kinds.VM)[vm]
        at.cache.view.table(kinds.VM).delete(vm)
        at.cache.view.table(kinds.VM).keep(vm, record.revision, record.error)
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        assert f"vm/{vm}" in here.received[-1].bookmark.kept
        assert f"vm/{vm}" not in here.objects
        assert not [each for each in here.received if each.HasField("remove")]
        await at.store.commit(Txn("test", puts={kinds.VM.key(vm): Put(good)}))
        await at.until(lambda: f"vm/{vm}" in here.objects)
        snapshots = [each for each in here.received if each.HasField("snapshot_begin")]
        assert len(snapshots) == 2, "what it kept and need not hold goes with it"
        assert here.error is None


# --- what is decided ----------------------------------------------------------


def outcomes(cloud: Cloud) -> list[Any]:
    found = []
    for reconciler in (Ports(), Placements(), Garbage()):
        for key in reconciler.all_keys(cloud.view):
            outcome = reconciler.reconcile(cloud.view, key, cloud.now)
            if outcome.txn is not None and outcome.txn and not touched(cloud.view, outcome.txn):
                found.append((key, outcome.say))
    return found


@pytest.mark.parametrize(
    ("kind", "id"),
    [
        (kinds.VM, "i-0000000a"), (kinds.PORT, "nic-0000000a"), (kinds.PORT_BINDING, "nic-0000000a"),
        (kinds.VOLUME, "vol-0000000a"), (kinds.PLACEMENT, "i-0000000a"), (kinds.SUBNET, "vxnet-0000blue"),
        (kinds.IMAGE, "img-0000demo"), (kinds.VPC, "rtr-0000000v"),
    ],
    ids=lambda value: getattr(value, "name", None),
)  # fmt: skip
def test_nothing_is_given_away_because_of_it(kind: AnyKind, id: str) -> None:
    cloud, _, vms = cloud_of_two()
    cloud.put(kinds.NAME, "prj-1/vm/a", NameClaim(kind="vm", project="prj-1", name="a", id=vms[0]))
    assert outcomes(cloud) == [], "all is at rest"
    damage(cloud, kind, id)
    assert outcomes(cloud) == []


@pytest.mark.parametrize("kind", [kinds.NODE_CLAIMS, kinds.POOL_CLAIMS], ids=lambda kind: kind.name)
def test_a_node_whose_claims_cannot_be_read_gets_no_more_until_they_can(kind: AnyKind) -> None:
    """Also for who follows the view, and is told of nothing but those claims."""
    cloud, nodes, vms = cloud_of_two()
    id = f"local/{nodes[0]}" if kind is kinds.POOL_CLAIMS else nodes[0]
    claims, table = cloud.edit(kind, id), Candidates().at(cloud.view)
    damage(cloud, kind, id)
    assert [bool(Candidates().at(cloud.view).counted[row]) for row in range(2)] == [False, True]
    table.follow(cloud.view, [(kind, id)])
    assert [bool(table.at(cloud.view).counted[row]) for row in range(2)] == [False, True]
    vm = cloud.view.get(kinds.VM, vms[0])
    assert vm is not None
    refused = {each.name: each.refused for each in decide(table.at(cloud.view), wanted_of(cloud.view, vm)).filters}
    assert refused["claims"] == 1
    cloud.put(kind, id, claims)
    table.follow(cloud.view, [(kind, id)])
    assert table.at(cloud.view).counted.all()


def test_bytes_of_a_pool_whose_claims_cannot_be_read_are_given_back_once_they_can() -> None:
    cloud, nodes, _ = cloud_of_two()
    pool, volume = f"local/{nodes[0]}", "vol-0000000a"
    claims = cloud.edit(kinds.POOL_CLAIMS, pool)
    cloud.delete(kinds.VOLUME, volume)
    damage(cloud, kinds.POOL_CLAIMS, pool)
    outcome = Placements().reconcile(cloud.view, volume, cloud.now)
    assert outcome.txn is not None
    assert touched(cloud.view, outcome.txn) == [f"pool_claims/{pool}"]
    cloud.put(kinds.POOL_CLAIMS, pool, claims)
    cloud.settle([Placements()])
    assert cloud.view.get(kinds.VOLUME_PLACEMENT, volume) is None
    assert cloud.claims(nodes[0])[2] == 0


def test_others_of_the_subnet_get_their_addresses() -> None:
    cloud, _, _ = cloud_of_two()
    damage(cloud, kinds.PORT_BINDING, "nic-0000000a")
    damage(cloud, kinds.ADDRESS, next(iter(cloud.view.by(kinds.ADDRESS, "subnet", "vxnet-0000blue"))))
    cloud.vm("c", subnet="vxnet-0000blue")
    outcome = Ports().reconcile(cloud.view, "vxnet-0000blue", cloud.now)
    assert outcome.txn is not None
    assert kinds.PORT_BINDING.key("nic-0000000c") in outcome.txn.puts
    assert not touched(cloud.view, outcome.txn)


def test_an_address_is_not_given_away_when_its_binding_can_be_read_again() -> None:
    """The claim looked like nobody's while the binding could not be read."""
    cloud, _, _ = cloud_of_two()
    binding, ports = cloud.edit(kinds.PORT_BINDING, "nic-0000000a"), Ports()
    damage(cloud, kinds.PORT_BINDING, binding.port)
    ports.follow(cloud.view, [])
    assert not ports.reconcile(cloud.view, binding.subnet, cloud.now).txn
    cloud.put(kinds.PORT_BINDING, binding.port, binding)
    ports.follow(cloud.view, [(kinds.PORT_BINDING, binding.port)])
    assert not ports.reconcile(cloud.view, binding.subnet, cloud.now).txn


@pytest.mark.parametrize("kind", [kinds.NODE_CLAIMS, kinds.POOL_CLAIMS], ids=lambda kind: kind.name)
def test_what_is_given_back_waits_for_claims_that_cannot_be_read(kind: AnyKind) -> None:
    """It stands on them, so it is not committed; it is no fault of whoever gives back."""
    cloud, nodes, _ = cloud_of_two()
    id = nodes[0] if kind is kinds.NODE_CLAIMS else f"local/{nodes[0]}"
    damage(cloud, kind, id)
    txn = Txn("placement")
    claim(txn, cloud.view, nodes[0], cpus=-1, memory_bytes=-1, vms=-1, pools={f"local/{nodes[0]}": -1})
    assert touched(cloud.view, txn) == [f"{kind.name}/{id}"]


def test_an_image_whose_bytes_nobody_can_tell_of_is_not_called_unready() -> None:
    """A refusal for good would be believed; the same call goes well once the record can be read."""
    cloud = Cloud()
    id = cloud.image("demo")
    image = cloud.view.get(kinds.IMAGE, id)
    assert image is not None
    kept = ImageContent(image=id, virtual_size_bytes=7 << 20)
    cloud.put(kinds.IMAGE_CONTENT, id, kept)
    damage(cloud, kinds.IMAGE_CONTENT, id)
    with pytest.raises(TryAgain, match="cannot be read; `cairn cluster fsck`"):
        disk_size(cloud.view, image, None, "image")
    cloud.put(kinds.IMAGE_CONTENT, id, kept)
    assert disk_size(cloud.view, image, None, "image") == 7 << 20


@pytest.mark.parametrize("kind", [kinds.VOLUME, kinds.VOLUME_PLACEMENT, kinds.NODE])
def test_work_about_what_cannot_be_read_stays_with_whoever_has_it(kind: AnyKind) -> None:
    """Given up and assigned anew it would begin its generations again, and nodes refuse what is older than they know."""
    cloud, _, _ = shared()
    id = held(cloud).node if kind is kinds.NODE else VOLUME
    damage(cloud, kind, id)
    outcome = Assignments().reconcile(cloud.view, WORK, cloud.now)
    assert (outcome.txn, outcome.say, outcome.held_up_by) == (
        None,
        f"{WORK}: {kind.name} {id} cannot be read",
        (f"{kind.name}/{id}",),
    )


def test_how_long_a_node_is_away_is_not_forgotten_while_its_record_cannot_be_read() -> None:
    cloud, _, _ = shared()
    node = held(cloud).node
    cloud.delete(kinds.NODE_SESSION, node)
    cloud.settle([Assignments()])
    assert cloud.view.get(kinds.NODE_LOSS, node) is not None
    damage(cloud, kinds.NODE, node)
    assert Assignments().reconcile(cloud.view, f"node/{node}", cloud.now).txn is None


def test_a_volume_whose_place_cannot_be_read_is_not_said_to_be_free() -> None:
    cloud = Cloud()
    volume = cloud.volume("data")
    damage(cloud, kinds.VOLUME_PLACEMENT, volume)
    shown = nouns.VOLUME.of(cloud.view, volume)
    assert shown is not None
    assert (shown.status.state, shown.status.say) == (
        VolumeStatus.STATE_PENDING,
        "where it is cannot be read; `cairn cluster fsck` lists what is damaged",
    )
