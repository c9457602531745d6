"""Who counts usage, alone with a store, on virtual time: killed anywhere, two at once, behind, restored, with too much to do.

What was counted is read from the records, and must be what was done.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from cairn.controller import metering
from cairn.controller.model.usage_days import DAY_US, day_of, number_of, us_of
from cairn.controller.restore import Restore
from cairn.controller.store.base import Put, Txn
from cairn.proto import kinds
from cairn.proto.seams import timestamp
from cairn.proto.v1.volume_pb2 import Volume, VolumeSpec

from tests.sim.loop import SimLoop
from tests.sim.store import StoreFaults
from tests.sim.usage_kit import GIB, One, S, backed_up, found, played


def test_a_vm_and_its_disk_are_counted_to_the_microsecond() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await asyncio.sleep(3)
        begin = one.clock.now()
        await one.volume("vol-1", 2)
        made = one.clock.now()
        await one.vm("i-1", 4)
        await asyncio.sleep(10)
        start = one.clock.now()
        await one.report("i-1", runs=True)
        await asyncio.sleep(20)
        stop = one.clock.now()
        await one.report("i-1", runs=False)
        await asyncio.sleep(5)
        end = one.clock.now()
        await one.vm("i-1", gone=True)
        await one.caught_up()
        ran_us = us_of(stop) - us_of(start)
        counted = one.counted["vm/i-1"]
        assert (counted["running"], counted["cpus"]) == (ran_us, 4 * ran_us)
        assert counted["us"] == us_of(end) - us_of(made)
        assert list(one.open) == ["volume/vol-1"]
        assert one.open["volume/vol-1"].since_us == us_of(begin)

    played(scenario)


def test_a_deleted_volume_counts_until_it_is_erased() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.volume("vol-1")
        await asyncio.sleep(10)
        volume = Volume(id="vol-1", name="vol-1", project="p", spec=VolumeSpec(size_bytes=GIB))
        volume.delete_time.CopyFrom(timestamp(one.clock.now()))
        await one.commit(Txn("api").put(kinds.VOLUME, "vol-1", volume))
        await asyncio.sleep(10)
        await one.volume("vol-1", gone=True)
        await one.caught_up()
        assert one.counted["volume/vol-1"]["gib"] == pytest.approx(20 * S, rel=0.01)

    played(scenario)


@pytest.mark.parametrize("seed", range(12))
def test_killed_anywhere_nothing_is_counted_twice_or_not_at_all(seed: int) -> None:
    """Two controllers, one after the other or both at once, with a store that loses answers and requests."""

    async def scenario() -> None:
        drawn, faults = random.Random(seed), StoreFaults(delay_s=(0, 0.02), lost_answer=0.1, lost_request=0.1, late_commit=0.1)
        backend = await found()
        hand = One(backend, "hand")
        hand.tasks.append(asyncio.create_task(hand.cache.run()))
        await hand.cache.ready.wait()
        counting = [One(backend, name, faults) for name in ("c1", "c2")]
        for each in counting:
            await each.begin()
        lives: dict[str, tuple[int, int]] = {}
        made: dict[str, int] = {}
        for number in range(60):
            await asyncio.sleep(drawn.uniform(0, 0.7))
            id = f"vol-{number}"
            made[id] = us_of(hand.clock.now())
            await hand.volume(id)
            if len(made) > 5:
                gone = drawn.choice(sorted(made))
                lives[gone] = (made.pop(gone), us_of(hand.clock.now()))
                await hand.volume(gone, gone=True)
            who = drawn.choice(counting)
            if drawn.random() < 0.3:
                who.kill()
                who.count()
            if drawn.random() < 0.3:
                who.peers.is_mine = not who.peers.is_mine
        faults.calm()
        for each in counting:
            each.peers.is_mine = True
        await hand.caught_up()
        assert {id: each["us"] for id, each in hand.counted.items()} == {
            f"volume/{id}": end - begin for id, (begin, end) in lives.items() if end > begin
        }
        assert {id: each.since_us for id, each in hand.open.items()} == {f"volume/{id}": us for id, us in made.items()}
        assert not hand.all(kinds.USAGE_GAP)

    played(scenario, seed)


def test_much_at_once_is_counted_in_few_commits() -> None:
    """1,000 changes; and one transaction with more changes than one commit of usage takes."""

    async def scenario() -> None:
        one = await One(await found()).begin()
        await asyncio.sleep(3)
        before = one.commits()
        for at in range(0, 1000, 125):
            txn = Txn("api")
            for number in range(at, at + 125):
                volume = Volume(id=f"vol-{number}", name="x", project="p", spec=VolumeSpec(size_bytes=GIB))
                txn.create(kinds.VOLUME, volume.id, volume)
            await one.commit(txn)
        await one.caught_up()
        assert len(one.open) == 1000
        assert one.commits() - before <= 12
        for at in range(0, 1000, 125):
            gone = Txn("garbage")
            for number in range(at, at + 125):
                gone.delete(kinds.VOLUME, f"vol-{number}")
            await one.commit(gone)
        await one.caught_up()
        assert not one.open
        assert len(one.counted) == 1000
        assert one.commits() - before <= 36

    played(scenario)


def test_a_quiet_cloud_is_written_nothing() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.volume("vol-1")
        await one.caught_up()
        await asyncio.sleep(400)
        before, revision = one.commits(), one.backend.revision
        await asyncio.sleep(7200)
        assert (one.commits(), one.backend.revision) == (before, revision)

    played(scenario)


def test_a_store_that_forgot_is_told_as_a_gap() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        for id in ("vol-stays", "vol-goes", "vol-grows"):
            await one.volume(id)
        await one.caught_up()
        begin_us = us_of(one.clock.now())
        one.kill()
        await asyncio.sleep(10)
        await one.volume("vol-goes", gone=True)
        await one.volume("vol-grows", 2)
        await one.volume("vol-comes")
        await asyncio.sleep(10)
        one.backend.compact(one.backend.revision)
        one.count()
        await asyncio.sleep(10)
        await one.caught_up()
        (gap,) = one.all(kinds.USAGE_GAP)
        assert gap.objects == 3
        assert "forgotten" in gap.say
        assert gap.begin_time.ToMicroseconds() <= begin_us
        assert sorted(one.open) == ["volume/vol-comes", "volume/vol-grows", "volume/vol-stays"]
        assert {id for id, each in one.open.items() if each.inexact} == {"volume/vol-comes", "volume/vol-grows"}
        assert one.open["volume/vol-grows"].size_bytes == 2 * GIB
        assert one.counted["volume/vol-goes"]["inexact"] == one.counted["volume/vol-goes"]["us"]
        assert any(each.reason == "UsageInexact" for each in one.all(kinds.EVENT))
        # Once behind it, all is exact again.
        await asyncio.sleep(5)
        await one.volume("vol-stays", gone=True)
        await one.caught_up()
        assert not one.counted["volume/vol-stays"]["inexact"]
        assert len(one.all(kinds.USAGE_GAP)) == 1

    played(scenario)


def test_a_store_that_forgot_what_nobody_counts_is_no_gap() -> None:
    """All controllers were away, their sessions ended, and history was compacted: nothing was used otherwise meanwhile."""

    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.volume("vol-1")
        await one.caught_up()
        one.kill()
        for number in range(5):
            await one.raw.commit(Txn("test", puts={f"/cairn/v1/event/{number}": Put(b"")}))
        one.backend.compact(one.backend.revision)
        one.count()
        await asyncio.sleep(10)
        await one.volume("vol-1", gone=True)
        await one.caught_up()
        assert not one.all(kinds.USAGE_GAP)
        assert one.counted["volume/vol-1"]["us"] == pytest.approx(10 * S, rel=0.2)

    played(scenario)


def test_what_is_looked_at_and_counts_as_before_moves_the_cursor() -> None:
    """A report of usage waits until the newest change that may count was looked at."""

    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.vm("i-1")
        for _ in range(3):
            await asyncio.sleep(4)
            await one.report("i-1", runs=False)
            begin_s = asyncio.get_running_loop().time()
            await one.caught_up()
            assert asyncio.get_running_loop().time() - begin_s < metering.UNCHANGED_S + metering.LOOK_S

    played(scenario)


def test_a_restore_in_place_is_exact_and_what_was_used_since_stays() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.vm("i-1")
        await one.report("i-1", runs=True, start_us=7)
        await one.volume("vol-back")
        await one.caught_up()
        kept = await backed_up(one)
        await asyncio.sleep(10)
        await one.volume("vol-back", gone=True)
        since = one.clock.now()
        await one.volume("vol-since")
        await asyncio.sleep(10)
        restore = Restore(one.raw, one.clock, kept, "me")
        at_us = us_of(one.clock.now())
        async for _ in restore.run():
            pass
        await one.cache.wait_for(await one.raw.revision())
        await asyncio.sleep(20)
        # The node says again what it said before.
        await one.report("i-1", runs=True, start_us=7)
        await asyncio.sleep(10)
        stop = one.clock.now()
        await one.report("i-1", runs=False)
        await one.caught_up()
        assert not one.all(kinds.USAGE_GAP)
        assert one.counted["volume/vol-since"]["us"] == pytest.approx(at_us - us_of(since), abs=100)
        assert one.open["volume/vol-back"].since_us == pytest.approx(at_us, abs=100)
        assert one.counted["volume/vol-back"]["us"] == pytest.approx(10 * S, rel=0.1)
        began_us = one.open["vm/i-1"].since_us - one.counted["vm/i-1"]["us"]
        assert one.open["vm/i-1"].since_us == us_of(stop)
        assert one.counted["vm/i-1"]["running"] == pytest.approx(us_of(stop) - began_us, abs=S)

    played(scenario)


def test_a_store_made_anew_goes_on_with_the_usage_of_the_backup() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.volume("vol-1")
        await one.volume("vol-2")
        await asyncio.sleep(10)
        await one.volume("vol-2", gone=True)
        await one.caught_up()
        since_us = one.open["volume/vol-1"].since_us
        kept = await backed_up(one)
        another = await One(await found()).begin()
        await another.volume("vol-of-the-new-one")
        await another.caught_up()
        async for _ in Restore(another.raw, another.clock, kept, "me").run():
            pass
        await asyncio.sleep(20)
        await another.caught_up()
        assert list(another.open) == ["volume/vol-1"]
        assert another.open["volume/vol-1"].since_us == since_us
        assert another.counted["volume/vol-2"]["us"] == pytest.approx(10 * S, rel=0.1)
        (gap,) = another.all(kinds.USAGE_GAP)
        assert "restored" in gap.say

    played(scenario)


def test_a_change_that_does_not_say_when_is_counted_from_now_and_marked() -> None:
    """As a controller of an older release makes it."""

    async def scenario() -> None:
        one = await One(await found()).begin()
        await asyncio.sleep(5)
        volume = Volume(id="vol-1", name="x", project="p", spec=VolumeSpec(size_bytes=GIB))
        await one.raw.commit(Txn("api").put(kinds.VOLUME, "vol-1", volume))
        await asyncio.sleep(5)
        assert one.open["volume/vol-1"].inexact

    played(scenario)


def test_what_cannot_be_read_is_nobodys_word() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.volume("vol-1")
        await one.caught_up()
        good = one.backend.find(kinds.VOLUME.key("vol-1"))
        assert good is not None
        for value in (b"\xff\xff\xff\xff", good.value):
            await one.raw.commit(Txn("test", puts={kinds.VOLUME.key("vol-1"): Put(value)}))
            await asyncio.sleep(5)
        assert not one.open["volume/vol-1"].inexact
        assert not one.counted

    played(scenario)


@pytest.mark.parametrize("key", [kinds.USAGE_CURSOR.key("self"), kinds.USAGE_OPEN.key("volume/vol-1")])
def test_a_damaged_record_of_its_own_is_waited_for(key: str) -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.volume("vol-1")
        await one.caught_up()
        one.kill()
        good = one.backend.find(key)
        assert good is not None
        await one.raw.commit(Txn("test", puts={key: Put(b"\xff\xff\xff\xff")}))
        one.count()
        await asyncio.sleep(60)
        assert one.backend.find(key) != good
        await one.raw.commit(Txn("test", puts={key: Put(good.value)}))
        await asyncio.sleep(60)
        await one.volume("vol-1", gone=True)
        await one.caught_up()
        assert not one.open
        assert not one.all(kinds.USAGE_GAP)
        assert one.counted["volume/vol-1"]["us"] == pytest.approx(120 * S, rel=0.1)

    played(scenario)


def test_a_cursor_that_is_gone_is_a_gap() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.volume("vol-1")
        await one.volume("vol-2")
        await one.caught_up()
        one.kill()
        await one.raw.commit(Txn("test", deletes={kinds.USAGE_CURSOR.key("self")}))
        await one.volume("vol-2", gone=True)
        one.count()
        await asyncio.sleep(10)
        await one.caught_up()
        assert list(one.open) == ["volume/vol-1"]
        assert len(one.all(kinds.USAGE_GAP)) == 1

    played(scenario)


def test_old_days_become_sums_and_old_sums_go() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        await one.volume("vol-1")
        await asyncio.sleep(3600)
        await one.volume("vol-1", gone=True)
        await one.caught_up()
        assert one.counted["volume/vol-1"]["us"]
        one.clock.wrong_s += 33 * 86_400
        await asyncio.sleep(2 * 3600)
        assert not one.counted
        (month,) = one.all(kinds.USAGE_MONTH)
        (sums,) = month.sums
        assert (sums.day, sums.kind, sums.type) == (20300101, "volume", "local")
        assert sums.us == pytest.approx(3600 * S, rel=0.001)
        assert number_of(sums.byte_us) == sums.us * GIB
        (cursor,) = one.all(kinds.USAGE_CURSOR)
        assert cursor.folded_before == day_of(us_of(one.clock.now()) - 31 * DAY_US)
        one.clock.wrong_s += 430 * 86_400
        await asyncio.sleep(2 * 3600)
        assert not one.all(kinds.USAGE_MONTH)

    played(scenario)


def test_a_clock_that_goes_back_takes_nothing_back() -> None:
    async def scenario() -> None:
        one = await One(await found()).begin()
        await one.volume("vol-1")
        since_us = us_of(one.clock.now())
        one.clock.wrong_s = -3600.0
        await one.volume("vol-1", 2)
        await one.caught_up()
        assert not one.counted
        assert one.open["volume/vol-1"].since_us == pytest.approx(since_us, abs=S)
        assert one.open["volume/vol-1"].size_bytes == 2 * GIB

    played(scenario)


def test_each_commit_of_usage_stays_within_what_one_takes() -> None:
    """A hundred projects whose days are nearly full; SimBackend refuses what etcd would."""

    async def scenario() -> None:
        one = await One(await found()).begin()
        for round in range(3):
            for project in range(100):
                txn = Txn("api")
                for number in range(2):
                    id = f"vol-{round}-{project}-{number}"
                    spec = VolumeSpec(size_bytes=GIB)
                    txn.create(kinds.VOLUME, id, Volume(id=id, name="x" * 60, project=f"prj-{project}", spec=spec))
                await one.commit(txn)
            await asyncio.sleep(2)
            for project in range(100):
                gone = Txn("garbage")
                for number in range(2):
                    gone.delete(kinds.VOLUME, f"vol-{round}-{project}-{number}")
                await one.commit(gone)
        await one.caught_up()
        assert len(one.counted) == 600
        assert len(one.all(kinds.USAGE_DAY)) == 100

    played(scenario)
