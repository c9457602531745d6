"""That many guests are to be let go at once, without a word, a node does not believe (docs/decisions/0025)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import pytest
from cairn.agent.app import Agent
from cairn.agent.doubt import DOUBTED_MIN, doubted, taken_back
from cairn.agent.ledger import Ledger
from cairn.proto.v1.agent_pb2 import Desired, DesiredVm, Remove, SyncRequest, SyncResponse, Unknown, Upsert, Version
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.agent_kit import Machine, elapse, ran, run, settled, vm_objects

Take = Callable[[Machine, Agent, "dict[str, Desired]"], Awaitable[None]]
GUESTS = tuple(f"vm/i-{number:08d}" for number in range(1, DOUBTED_MIN + 2))


def objects(count: int) -> dict[str, Desired]:
    return {key: each for number in range(1, count + 1) for key, each in vm_objects(number).items()}


def without_guests(all: dict[str, Desired]) -> dict[str, Desired]:
    return {key: each for key, each in all.items() if not key.startswith(("vm/", "port/", "volume/"))}


def told(agent: Agent) -> list[SyncRequest]:
    agent.reports.resend_all()
    return agent.reports.take()


def unknown(agent: Agent) -> dict[str, Unknown]:
    return {each.unknown.key: each.unknown for each in told(agent) if each.HasField("unknown")}


async def lacking(machine: Machine, agent: Agent, all: dict[str, Desired]) -> None:
    await machine.snapshot(agent, without_guests(all))


async def taken(machine: Machine, agent: Agent, all: dict[str, Desired]) -> None:
    await machine.remove(agent, sorted(all.keys() - without_guests(all).keys()))


async def one_by_one(machine: Machine, agent: Agent, all: dict[str, Desired]) -> None:
    for key in sorted(all):
        if key.startswith("vm/"):
            await machine.remove(agent, [key])


async def running(count: int) -> tuple[Machine, Agent]:
    machine = Machine()
    machine.hold_image()
    agent = machine.agent()
    await agent.start()
    await machine.snapshot(agent, objects(count))
    for key in GUESTS[:count]:
        await ran(agent, key.partition("/")[2])
    await settled(agent)
    agent.reports.take()
    return machine, agent


@pytest.mark.parametrize("take", [lacking, taken])
def test_many_guests_that_are_dropped_at_once_are_managed_as_before(take: Take) -> None:
    async def scenario() -> None:
        machine, agent = await running(DOUBTED_MIN)
        await take(machine, agent, objects(DOUBTED_MIN))
        await elapse(100)
        assert agent.ledger.doubted == set(GUESTS[:DOUBTED_MIN])
        events = [each.event for each in told(agent) if each.HasField("event")]
        assert [event.reason for event in events] == ["GuestsDoubted"], "told once"
        assert "`cairn cluster adopt`" in events[0].message
        found = {key: each for key, each in unknown(agent).items() if key.startswith("vm/")}
        assert found.keys() == set(GUESTS[:DOUBTED_MIN])
        assert all(each.doubted and each.running and each.desired.vm.name for each in found.values())
        # They are managed: after a power cut they run again, with their cards, as often as it takes.
        await machine.crash(agent)
        machine.host.power_off()
        machine.net.networks.clear()
        machine.net.taps.clear()
        again = machine.agent()
        await again.start()
        await elapse(100)
        assert machine.running() == {key.partition("/")[2] for key in GUESTS[:DOUBTED_MIN]}
        assert all(machine.net.is_bound(f"nic-{number:08d}") for number in range(1, DOUBTED_MIN + 1))
        await machine.snapshot(again, without_guests(objects(DOUBTED_MIN)))
        assert again.ledger.doubted == set(GUESTS[:DOUBTED_MIN]), "told the same again"
        await again.stop()

    run(scenario)


def test_of_a_few_it_lets_go_and_not_of_one_more() -> None:
    async def scenario() -> None:
        machine, agent = await running(DOUBTED_MIN)
        await one_by_one(machine, agent, objects(DOUBTED_MIN))
        assert sorted(key for key in agent.ledger.unknown if key.startswith("vm/")) == list(GUESTS[: DOUBTED_MIN - 1])
        assert agent.ledger.doubted == {GUESTS[DOUBTED_MIN - 1]}
        await agent.stop()

    run(scenario)


def test_a_few_are_unknown() -> None:
    async def scenario() -> None:
        machine, agent = await running(DOUBTED_MIN - 1)
        await lacking(machine, agent, objects(DOUBTED_MIN - 1))
        assert not agent.ledger.doubted
        assert {key for key in agent.ledger.unknown if key.startswith("vm/")} == set(GUESTS[: DOUBTED_MIN - 1])
        await agent.stop()

    run(scenario)


def test_doubt_ends_with_a_word() -> None:
    """One is spoken of again, one is to be absent; the others stay doubted, though few. A restored store is believed."""

    async def scenario() -> None:
        machine, agent = await running(DOUBTED_MIN)
        all = objects(DOUBTED_MIN)
        await lacking(machine, agent, all)
        back, gone = GUESTS[:2]
        await machine.upsert(agent, {back: all[back], gone: Desired(vm=DesiredVm(id=gone[3:], absent=True))})
        await elapse(60)
        assert agent.ledger.doubted == set(GUESTS[2:DOUBTED_MIN])
        assert gone[3:] not in machine.host.guests
        assert {key for key, each in unknown(agent).items() if each.doubted} == set(GUESTS[2:DOUBTED_MIN])
        for each in (agent.ledger, await reloaded(machine)):
            assert each.doubted == set(GUESTS[2:DOUBTED_MIN])
        await machine.snapshot(agent, {**without_guests(all), back: all[back]})
        assert agent.ledger.doubted == set(GUESTS[2:DOUBTED_MIN])
        machine.epoch += 1
        await machine.snapshot(agent, {back: all[back]})
        assert not agent.ledger.doubted
        assert set(GUESTS[2:DOUBTED_MIN]) <= agent.ledger.unknown.keys()
        await agent.stop()

    run(scenario)


async def reloaded(machine: Machine) -> Ledger:
    ledger = Ledger(machine.disk)
    await ledger.load()
    return ledger


def test_those_that_were_to_be_absent_go() -> None:
    async def scenario() -> None:
        machine, agent = await running(DOUBTED_MIN)
        await machine.upsert(agent, {key: Desired(vm=DesiredVm(id=key[3:], absent=True)) for key in GUESTS[:DOUBTED_MIN]})
        await elapse(60)
        await machine.remove(agent, GUESTS[:DOUBTED_MIN])
        assert not agent.ledger.doubted
        assert not agent.ledger.desired.keys() & set(GUESTS)
        await agent.stop()

    run(scenario)


# --- the rules -------------------------------------------------------------------------------------------------------------

keys = st.sets(st.sampled_from(GUESTS))


def held(of: Iterable[str], *, absent: bool = False) -> dict[str, Upsert]:
    return {key: Upsert(key=key, object=Desired(vm=DesiredVm(id=key, absent=absent))) for key in of}


@given(dropped=keys, desired=keys, absent=keys, unknown=keys)
def test_all_that_would_be_too_many_stay_or_none(
    dropped: set[str], desired: set[str], absent: set[str], unknown: set[str]
) -> None:
    here = held(desired) | held(absent, absent=True)
    stay = doubted(dropped, here, held(unknown))
    guests = (dropped & desired) - absent
    assert stay == (guests if len(guests) + len(unknown) >= DOUBTED_MIN else set())


def word(key: str, verb: str) -> SyncResponse:
    if verb == "remove":
        return SyncResponse(remove=Remove(key=key, version=Version(epoch=1, revision=1)))
    return SyncResponse(upsert=held([key], absent=verb == "absent")[key])


@given(
    desired=keys,
    words=st.lists(st.tuples(st.sampled_from(GUESTS), st.sampled_from(["remove", "upsert", "absent"])), max_size=12),
)
def test_what_is_taken_back_is_what_was_said_last(desired: set[str], words: list[tuple[str, str]]) -> None:
    expected = set()
    for key in {key for key, _ in words}:
        said = [verb for each, verb in words if each == key]
        before = [verb for verb in said[:-1] if verb != "remove"]
        if said[-1] == "remove" and (before[-1:] != ["absent"]):
            expected.add(key)
    assert taken_back([word(*each) for each in words], held(desired)) == expected
