"""Images that are damaged, here or where they come from: nothing else waits for them, and they are fetched anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from cairn.agent.app import Agent
from cairn.agent.world import Part
from cairn.proto.v1.agent_pb2 import BlobSource, Desired, DesiredImage, DesiredVolume, ImageReport, VolumeReport
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.storage.base import BadImage, Image, StorageError, Volume

from tests.unit.agent_kit import CONTENT, DIGEST, Machine, image, run, until

KEY = "image/img-00000001"


def damaged(machine: Machine) -> None:
    machine.pool.images[DIGEST] = (Image(DIGEST, len(CONTENT), 0, ImageFormat.IMAGE_FORMAT_UNSPECIFIED), b"")


def from_two() -> dict[str, Desired]:
    wanted = image()
    wanted.sources.extend(BlobSource(node=f"node-0000000{n}", endpoint=f"10.0.0.{n}:7446") for n in (2, 3))
    return {KEY: Desired(image=wanted)}


def told(agent: Agent) -> ImageReport:
    report = agent.reports.latest(KEY)
    return report.image if report is not None else ImageReport()


def asked(machine: Machine, agent: Agent, monkeypatch: pytest.MonkeyPatch, bad: set[str]) -> list[str]:
    """Have sources answer; those that are bad with other bytes. Return whom the agent asked, as it does."""
    order: list[str] = []

    async def pull(_key: str, desired: DesiredImage, source: BlobSource) -> None:
        order.append(source.node)
        if source.node in bad:
            raise BadImage("the bytes have another digest")
        machine.hold_image()
        agent.world.mark(Part.IMAGES)

    monkeypatch.setattr(agent.images, "_pull_from", pull)
    return order


def test_a_damaged_source_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = machine.agent()
        order = asked(machine, agent, monkeypatch, {"node-00000002"})
        await agent.start()
        await machine.snapshot(agent, from_two())
        await until("held", lambda: told(agent).state == ImageReport.STATE_READY)
        assert order == ["node-00000002", "node-00000003"]
        await agent.stop()

    run(scenario)


def test_what_no_source_has_right_is_not_asked_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = machine.agent()
        asked(machine, agent, monkeypatch, {"node-00000002", "node-00000003"})
        await machine.snapshot(agent, from_two())
        desired = agent.ledger.object(KEY)
        assert desired is not None
        with pytest.raises(StorageError) as error:
            await agent.images._pull(KEY, desired.image)
        assert not error.value.retryable

    run(scenario)


def test_a_damaged_image_is_fetched_anew_and_is_not_ready_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        machine = Machine()
        damaged(machine)
        agent = machine.agent()
        order = asked(machine, agent, monkeypatch, set())
        await agent.start()
        await machine.snapshot(agent, {KEY: Desired(image=image())})
        await until("told", lambda: "damaged" in told(agent).say)
        assert told(agent).state == ImageReport.STATE_FETCHING
        await machine.upsert(agent, from_two())
        await until("held", lambda: told(agent).state == ImageReport.STATE_READY)
        assert order == ["node-00000002"]
        await agent.stop()

    run(scenario)


def test_nothing_is_made_of_a_damaged_image_and_it_can_go() -> None:
    async def scenario() -> None:
        machine = Machine()
        damaged(machine)
        agent = machine.agent()
        await agent.start()
        copy = DesiredVolume(id="vol-00000001", size_bytes=64 << 20, type="local", image="img-00000001", image_digest=DIGEST)
        other = DesiredVolume(id="vol-00000002", size_bytes=64 << 20, type="local")
        volumes = {f"volume/{each.id}": Desired(volume=each) for each in (copy, other)}
        await machine.snapshot(agent, {KEY: Desired(image=image()), **volumes})
        await until("made", lambda: (seen := agent.reports.latest("volume/vol-00000002")) and seen.volume.size_bytes)
        waits = agent.reports.latest("volume/vol-00000001")
        assert waits is not None
        assert waits.volume.state == VolumeReport.STATE_CREATING
        assert set(machine.pool.volumes) == {"vol-00000002"}
        gone = Desired(image=DesiredImage(id="img-00000001", digest=DIGEST, absent=True))
        await machine.upsert(agent, {KEY: gone, "volume/vol-00000001": Desired(volume=DesiredVolume(id=copy.id, absent=True))})
        await until("removed", lambda: DIGEST not in machine.pool.images)
        await agent.stop()

    run(scenario)


def test_an_image_that_cannot_be_removed_keeps_no_other() -> None:
    """A volume that the ledger never heard of is a copy of it."""

    async def scenario() -> None:
        machine, other = Machine(), "sha256:" + "f" * 64
        machine.hold_image()
        held, content = machine.pool.images[DIGEST]
        machine.pool.images[other] = (replace(held, digest=other), content)
        first = min(DIGEST, other)
        machine.pool.volumes["vol-0000000x"] = Volume("vol-0000000x", 64 << 20, 0, first)
        agent = machine.agent()
        await agent.start()
        ids = {DIGEST: "img-00000001", other: "img-00000002"}
        gone = {f"image/{id}": Desired(image=DesiredImage(id=id, digest=each, absent=True)) for each, id in ids.items()}
        await machine.snapshot(agent, gone)
        await until("the other removed", lambda: set(machine.pool.images) == {first})
        await until("told", lambda: (seen := agent.reports.latest(f"image/{ids[first]}")) and "vol-0000000x" in seen.image.say)
        left = agent.reports.latest(f"image/{ids[max(DIGEST, other)]}")
        assert left is not None
        assert left.image.state == ImageReport.STATE_ABSENT
        await agent.stop()

    run(scenario)


def test_the_bytes_of_an_image_that_was_deleted_meanwhile_are_taken_no_further() -> None:
    async def scenario() -> None:
        machine = Machine()
        agent = machine.agent()
        await machine.snapshot(agent, {KEY: Desired(image=image())})
        taken: list[int] = []

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(CONTENT), 1 << 10):
                taken.append(start)
                yield CONTENT[start : start + (1 << 10)]
                if start == 0:
                    gone = DesiredImage(id="img-00000001", digest=DIGEST, absent=True)
                    await machine.upsert(agent, {KEY: Desired(image=gone)})
                await asyncio.sleep(0.5)

        with pytest.raises(StorageError, match="not wanted here any more"):
            await agent.images.receive(KEY, image(), chunks())
        assert len(taken) <= 4
        assert DIGEST not in machine.pool.images
        assert agent.reports.latest(KEY) is None or not told(agent).error, "its removal is told by who removes it"

    run(scenario)
