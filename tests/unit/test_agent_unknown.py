"""Only an explicit word destroys: what a node is not told any more keeps running and existing, and is told as unknown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from cairn.agent.app import Agent
from cairn.agent.ledger import Ledger
from cairn.agent.verdict import Note, noted
from cairn.proto.ids import mac_of
from cairn.proto.keys import UNSETTLED
from cairn.proto.v1.agent_pb2 import (
    Desired,
    DesiredForward,
    DesiredImage,
    DesiredVm,
    Unknown,
    Upsert,
    Version,
    VmReport,
)
from cairn.storage.base import Volume

from tests.unit.agent_kit import DIGEST, MIB, Machine, elapse, ran, root_volume, run, state_of, until, vm_objects

VM, KEY, VOLUME, PORT = "i-00000001", "vm/i-00000001", "volume/vol-00000001", "port/nic-00000001"
IMAGE = "image/img-00000001"
FORWARD = "forward/rtr-00000001/nic-00000009"
Take = Callable[[Machine, Agent], Awaitable[None]]


def forgets(take: Take) -> Callable[[], Coroutine[Any, Any, tuple[Machine, Agent]]]:
    async def scenario() -> tuple[Machine, Agent]:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await take(machine, agent)
        await elapse(100)
        return machine, agent

    return scenario


def told(agent: Agent) -> dict[str, Unknown]:
    agent.reports.resend_all()
    return {each.unknown.key: each.unknown for each in agent.reports.take() if each.HasField("unknown")}


@pytest.mark.parametrize(
    "take",
    [lambda machine, agent: machine.snapshot(agent, {}), lambda machine, agent: machine.remove(agent, sorted(vm_objects()))],
    ids=["not in a snapshot", "removed"],
)
def test_what_is_not_desired_any_more_stays_and_is_told(take: Take) -> None:
    async def scenario() -> None:
        machine, agent = await forgets(take)()
        assert machine.running() == {VM}
        assert machine.host.boots == [VM]
        assert machine.net.is_bound("nic-00000001"), "it keeps its card"
        assert machine.services.vms.keys() == {VM}, "DHCP and metadata answer it"
        assert set(machine.pool.volumes) == {"vol-00000001"}
        assert set(machine.pool.images) == {DIGEST}
        unknown = told(agent)
        assert set(unknown) == {KEY, VOLUME, IMAGE}
        assert unknown[KEY].running
        assert unknown[KEY].desired == vm_objects()[KEY], "the last object is told whole"
        assert unknown[KEY].version.revision == 11
        assert agent.reports.latest(KEY) is None
        await agent.stop()

    run(scenario)


def test_it_is_remembered_over_a_power_cut_and_not_started() -> None:
    async def scenario() -> None:
        machine, agent = await forgets(lambda machine, agent: machine.snapshot(agent, {}))()
        await machine.crash(agent)
        machine.host.power_off()
        agent = machine.agent()
        await agent.start()
        await elapse(100)
        assert machine.running() == set(), "nobody asks for it"
        unknown = told(agent)
        assert (unknown[KEY].running, unknown[KEY].desired.vm.name) == (False, "web1")
        await machine.upsert(agent, vm_objects())
        await ran(agent, VM)
        await until("nothing to be unknown", lambda: not told(agent))
        await agent.stop()

    run(scenario)


def test_a_guest_that_ends_is_left_off() -> None:
    async def scenario() -> None:
        machine, agent = await forgets(lambda machine, agent: machine.snapshot(agent, {}))()
        machine.host.crash(VM)
        await elapse(100)
        assert machine.running() == set()
        assert VM in machine.host.guests
        assert not told(agent)[KEY].running
        await agent.stop()

    run(scenario)


def test_an_explicit_word_removes_all_of_it() -> None:
    async def scenario() -> None:
        machine, agent = await forgets(lambda machine, agent: machine.snapshot(agent, {}))()
        absent = {
            KEY: Desired(vm=DesiredVm(id=VM, absent=True)),
            VOLUME: Desired(volume=root_volume(absent=True)),
            IMAGE: Desired(image=DesiredImage(id="img-00000001", digest=DIGEST, absent=True)),
        }
        await machine.upsert(agent, absent)
        await until("all to be gone", lambda: machine.is_empty() and not machine.pool.images)
        assert state_of(agent, VM) == VmReport.STATE_ABSENT
        await machine.remove(agent, absent)
        await elapse(40)
        assert not told(agent)
        assert not agent.ledger.unknown
        assert not agent.ledger.desired
        await agent.stop()

    run(scenario)


def test_what_is_gone_from_the_host_is_forgotten() -> None:
    async def scenario() -> None:
        machine, agent = await forgets(lambda machine, agent: machine.snapshot(agent, {}))()
        machine.host.guests.pop(VM)
        machine.files.clear()
        await elapse(100)
        assert set(told(agent)) == {VOLUME, IMAGE}
        assert KEY not in agent.ledger.unknown
        assert agent.ledger.unknown.keys() == {VOLUME, IMAGE}, "its card and its network went with it"
        await agent.stop()

    run(scenario)


def test_an_image_goes_on_a_word_only_and_not_under_a_copy_of_it() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await machine.upsert(agent, {IMAGE: Desired(image=DesiredImage(id="img-00000001", digest=DIGEST, absent=True))})
        await elapse(40)
        assert DIGEST in machine.pool.images
        report = agent.reports.latest(IMAGE)
        assert report is not None
        assert report.image.say == "kept while vol-00000001 is a copy of it"
        assert report.image.virtual_size_bytes, "whoever takes it up again knows its size from nobody else"
        await agent.stop()

    run(scenario)


# --- found without the ledger knowing of it ------------------------------------------------------------


def test_unknown_volumes_are_kept_and_told() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.pool.volumes["vol-0000zzzz"] = Volume("vol-0000zzzz", MIB, MIB)
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {})
        await elapse(40)
        messages = agent.reports.take()
        assert [each.unknown.key for each in messages if each.HasField("unknown")] == ["volume/vol-0000zzzz"]
        assert [list(each.unknown_keys.keys) for each in messages if each.HasField("unknown_keys")] == [["volume/vol-0000zzzz"]]
        assert "vol-0000zzzz" in machine.pool.volumes
        await agent.stop()

    run(scenario)


def test_a_cut_ledger_starts_guests_and_proves_nothing_absent() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, {})
        await machine.upsert(agent, vm_objects(1))
        await ran(agent, VM)
        await machine.upsert(agent, vm_objects(2))
        await ran(agent, "i-00000002")
        await machine.crash(agent)
        content = machine.disk.files["ledger"]
        at = content.index(b"vm/i-00000002")
        machine.disk.files["ledger"] = content[:at] + b"?" + content[at + 1 :]
        agent = machine.agent()
        await agent.start()
        await elapse(100)
        assert machine.running() == {VM, "i-00000002"}
        await machine.snapshot(agent, vm_objects(1))
        await elapse(100)
        assert machine.running() == {VM, "i-00000002"}
        await agent.stop()

    run(scenario)


def test_an_agent_that_knows_nothing_removes_nothing() -> None:
    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await machine.snapshot(agent, vm_objects())
        await ran(agent, VM)
        await machine.crash(agent)
        machine.disk.files.clear()
        machine.disk.durable.clear()
        agent = machine.agent()
        await agent.start()
        await elapse(100)
        assert machine.running() == {VM}
        assert machine.net.is_bound("nic-00000001")
        await machine.snapshot(agent, {})
        await elapse(40)
        assert machine.running() == {VM}, "nobody said that it be absent"
        assert machine.net.is_bound("nic-00000001")
        assert set(machine.pool.volumes) == {"vol-00000001"}, "user data nobody said is absent"
        told = {each.unknown.key: each.unknown for each in agent.reports.take() if each.HasField("unknown")}
        assert set(told) == {KEY, "volume/vol-00000001", f"image/{DIGEST}"}
        assert told[KEY].running
        assert not told[KEY].HasField("desired"), "its ledger knew of nothing"
        await agent.stop()

    run(scenario)


# --- the ledger's part ------------------------------------------------------------------------------------------


async def ledger_of(machine: Machine) -> Ledger:
    ledger = Ledger(machine.disk)
    await ledger.load()
    return ledger


def upserts(objects: dict[str, Desired], revision: int, epoch: int = 1) -> list[Upsert]:
    version = Version(epoch=epoch, revision=revision)
    return [Upsert(key=key, version=version, object=object) for key, object in objects.items()]


def forward(address: str = "10.1.1.9") -> Desired:
    return Desired(
        forward=DesiredForward(
            port="nic-00000009", vpc="rtr-00000001", subnet="vxnet-00000001", address=address, mac=mac_of("nic-00000009")
        )
    )


async def test_what_the_controller_cannot_tell_stays_desired() -> None:
    machine = Machine()
    ledger = await ledger_of(machine)
    objects = {**vm_objects(1), **vm_objects(2), FORWARD: forward()}
    await ledger.accept_snapshot(Version(epoch=1, revision=5), upserts(objects, 5))
    await ledger.accept_snapshot(Version(epoch=1, revision=9), upserts(vm_objects(2), 9), [KEY, "forward/"])
    assert set(ledger.desired) == {*vm_objects(2), KEY, FORWARD}
    assert set(ledger.unknown) == {VOLUME, PORT}, "what the VM needs is kept with it"
    assert ledger.desired[KEY].version.revision == 5
    assert (await ledger_of(machine)).desired == ledger.desired
    assert (await ledger_of(machine)).unknown == ledger.unknown


async def test_plumbing_nobody_here_needs_goes_at_once() -> None:
    ledger = await ledger_of(Machine())
    await ledger.accept_snapshot(Version(epoch=1, revision=5), upserts({**vm_objects(), FORWARD: forward()}, 5))
    gone = {KEY: Desired(vm=DesiredVm(id=VM, absent=True)), VOLUME: Desired(volume=root_volume(absent=True))}
    await ledger.accept_snapshot(Version(epoch=1, revision=9), upserts(gone, 9))
    assert set(ledger.unknown) == {IMAGE}


@pytest.mark.parametrize(("epoch", "stays"), [(1, False), (2, True)], ids=["the same store", "a restored store"])
async def test_forwards_stay_only_when_the_store_may_know_less(epoch: int, stays: bool) -> None:
    machine = Machine()
    ledger = await ledger_of(machine)
    await ledger.accept_snapshot(Version(epoch=1, revision=5), upserts({**vm_objects(), FORWARD: forward()}, 5))
    await ledger.accept_snapshot(Version(epoch=epoch, revision=9), upserts(vm_objects(), 9, epoch))
    assert (FORWARD in ledger.unknown) == stays
    if stays:
        taken = {PORT: Desired(port=vm_objects()[PORT].port)}
        taken[PORT].port.address = "10.1.1.9"
        await ledger.accept_snapshot(Version(epoch=epoch, revision=10), upserts({**vm_objects(), **taken}, 10, epoch))
        assert FORWARD not in ledger.unknown, "its address is somebody else's now"


async def test_forwards_a_restored_store_lacks_go_once_everything_is_decided() -> None:
    machine = Machine()
    ledger = await ledger_of(machine)
    await ledger.accept_snapshot(Version(epoch=1, revision=5), upserts({**vm_objects(), FORWARD: forward()}, 5))
    await ledger.accept_snapshot(Version(epoch=2, revision=9), upserts(vm_objects(), 9, 2), [UNSETTLED])
    await ledger.accept_snapshot(Version(epoch=2, revision=10), upserts(vm_objects(), 10, 2), [UNSETTLED])
    assert FORWARD in (await ledger_of(machine)).unknown, "connecting again decides nothing"
    await ledger.accept_snapshot(Version(epoch=2, revision=11), upserts(vm_objects(), 11, 2))
    assert FORWARD not in ledger.unknown
    assert FORWARD not in (await ledger_of(machine)).unknown


def test_a_note_of_a_newer_release_is_read_and_kept() -> None:
    assert noted({"exit": "guest", "crashes": 2, "fenced_by": "x"}) == Note(exit="guest", crashes=2)

    async def scenario() -> None:
        machine = Machine()
        machine.hold_image()
        agent = machine.agent()
        await agent.start()
        await agent.ledger.accept_snapshot(machine.version(), upserts(vm_objects(), machine.revision))
        await agent.ledger.write_note(KEY, {"fenced_by": "x"})
        agent.loop.accepted(agent.ledger.desired)
        await ran(agent, VM)
        assert agent.ledger.note(KEY)["fenced_by"] == "x"
        await agent.stop()

    run(scenario)


def test_a_guest_of_which_a_restored_store_cannot_tell_what_it_is_to_be_is_told() -> None:
    """It lacks the address of a card: the guest is kept, and only what its node says of it knows what it has."""

    async def scenario() -> None:
        machine, agent = await forgets(_nothing)()
        others = {key: each for key, each in vm_objects().items() if key not in (KEY, PORT)}
        upserts = [Upsert(key=key, version=Version(epoch=2, revision=1), object=each) for key, each in others.items()]
        await agent.ledger.accept_snapshot(
            Version(epoch=2, revision=1), upserts, [KEY, PORT, UNSETTLED], then=agent.loop.accepted
        )
        await until("the guest to be told", lambda: KEY in told(agent))
        known = told(agent)[KEY]
        assert (known.running, known.contested, known.desired.vm.nics[0].port) == (True, True, PORT.partition("/")[2])
        assert machine.running() == {VM}
        whole = [Upsert(key=key, version=Version(epoch=2, revision=2), object=each) for key, each in vm_objects().items()]
        await agent.ledger.accept_snapshot(Version(epoch=2, revision=2), whole, then=agent.loop.accepted)
        await until("it to be told no more", lambda: KEY not in told(agent))
        assert machine.running() == {VM}

    run(scenario)


async def _nothing(_machine: Machine, _agent: Agent) -> None:
    """All stays as it was."""
