"""Events as users see them. No controller keeps them: lists and watches are answered from the store, and cost what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cairn.controller import events
from cairn.controller.api.nouns import DEFAULT_PROJECT_ID
from cairn.controller.events import event_id
from cairn.controller.store.base import Item, Lease, Put, Store, Txn
from cairn.proto import kinds
from cairn.proto.seams import timestamp
from cairn.proto.v1.common_pb2 import ChangeType
from cairn.proto.v1.event_pb2 import Event, ListEventsRequest, WatchEventsRequest
from cairn.proto.v1.project_pb2 import Project

from tests.conformance.api_stores import STORES, made_store
from tests.conformance.api_world import World, world_on

UPSERT, DELETE, BOOKMARK = ChangeType.CHANGE_TYPE_UPSERT, ChangeType.CHANGE_TYPE_DELETE, ChangeType.CHANGE_TYPE_BOOKMARK
ELSEWHERE = "prj-elsewhere"


class Counting:
    """A store that counts the records it was asked for."""

    def __init__(self, store: Store) -> None:
        self._store, self.records = store, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, prefix: str, **more: Any) -> tuple[list[Item], int]:
        items, revision = await self._store.read(prefix, **more)
        self.records += len(items)
        return items, revision


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with made_store(request) as store, world_on(Counting(store), tmp_path) as world:  # type: ignore[arg-type]
        yield world


async def lease(world: World) -> Lease:
    return await world.store.lease(60)


async def tell(world: World, *objects: str, project: str = DEFAULT_PROJECT_ID, lease: int = 0) -> list[str]:
    """Have something happen to each, one after the other, in one commit; return the events' ids."""
    txn, ids = Txn("sync"), []
    for object in objects:
        # Of two in one millisecond nobody can tell which was first.
        world.clock.ahead += timedelta(milliseconds=1)
        now = world.clock.now()
        event = Event(id=event_id(now, world.ids), project=project, event_time=timestamp(now), object=object, reason="Told")
        events.add(txn, event, lease)
        ids.append(event.id)
    await world.commit(txn)
    return ids


async def listed(world: World, filter: str = "", **more: Any) -> list[str]:
    found, token = list[str](), ""
    while True:
        page = await world.api.events.ListEvents(ListEventsRequest(filter=filter, page_token=token, **more))
        found += [event.id for event in page.events]
        token = page.next_page_token
        if not token:
            return found


@asynccontextmanager
async def watching(world: World, **asked: Any) -> AsyncIterator[Any]:
    """Yield a function that waits for the next message."""
    call = world.api.events.WatchEvents(WatchEventsRequest(**asked))
    stream = aiter(call)

    async def told() -> Any:
        async with asyncio.timeout(10):
            return await anext(stream)

    try:
        yield told
    finally:
        call.cancel()


async def test_no_controller_keeps_them(world: World) -> None:
    await tell(world, "i-1")
    assert not list(world.cache.view.ids(kinds.EVENT))
    assert not list(world.cache.view.ids(kinds.EVENT_OF))
    assert len(await listed(world, "object = i-1")) == 1


async def test_listed_oldest_first_in_pages_of_one_picture(world: World) -> None:
    ids = await tell(world, *(f"i-{number % 3}" for number in range(20)))
    first = await world.api.events.ListEvents(ListEventsRequest(page_size=7, filter="reason = Told"))
    late = await tell(world, "i-0")
    second = await world.api.events.ListEvents(
        ListEventsRequest(page_size=100, filter="reason = Told", page_token=first.next_page_token)
    )
    assert [event.id for event in (*first.events, *second.events)] == ids
    assert second.revision == first.revision
    assert await listed(world, "reason = Told", page_size=3) == ids + late
    assert await listed(world, f"id = {ids[4]}") == [ids[4]]
    assert await listed(world, "id = ev-nosuch") == []


async def test_what_happened_to_one_object_costs_what_happened_to_it(world: World) -> None:
    """However much happened to others."""
    for _ in range(6):
        await tell(world, *(["i-other"] * 50))
    mine = await tell(world, "i-mine", "i-mine")
    # What an object's id begins with is another object.
    await tell(world, "i-min", "i-mine/x")
    counted: Any = world.store
    counted.records = 0
    assert await listed(world, "object = i-mine AND reason = Told") == mine
    assert counted.records <= 3 * len(mine)
    assert await listed(world, "object = i-mine", page_size=1) == mine
    assert len(await listed(world, "object = i-min*")) == 4


async def test_what_an_older_release_told_is_listed(world: World) -> None:
    """It wrote no references."""
    now = world.clock.now()
    event = Event(id=event_id(now, world.ids), project=DEFAULT_PROJECT_ID, event_time=timestamp(now), object="i-1")
    await world.commit(Txn("sync").create(kinds.EVENT, event.id, event))
    assert event.id in await listed(world)
    assert await listed(world, f"event_time >= {now:%Y-%m-%dT%H:%M:%SZ} AND object_name != x") == [event.id]


async def test_one_that_cannot_be_read_hides_no_other(world: World) -> None:
    ids = await tell(world, "i-1", "i-1", "i-1")
    key = kinds.EVENT.key(ids[1])
    await world.store.commit(Txn("sync", puts={key: Put(b"\xff\xff")}, writers={key: "sync"}))
    assert await listed(world, "object = i-1") == [ids[0], ids[2]]
    async with watching(world, filter="object = i-1") as told:
        assert [(await told()).event.id for _ in range(2)] == [ids[0], ids[2]]


async def test_watched_from_the_beginning(world: World) -> None:
    ids = await tell(world, "i-1", "i-2", "i-1")
    async with watching(world, filter="object = i-1") as told:
        first, second, mark = [await told() for _ in range(3)]
        assert [(each.type, each.event.id, each.revision) for each in (first, second)] == [
            (UPSERT, ids[0], 0), (UPSERT, ids[2], 0),
        ]  # fmt: skip
        assert (mark.type, mark.HasField("event")) == (BOOKMARK, False)
        await tell(world, "i-2")
        both = await tell(world, "i-1", "i-2", "i-1")
        first, second = await told(), await told()
    assert [first.event.id, second.event.id] == [both[0], both[2]]
    assert first.revision < second.revision == world.cache.view.revision, "only the last of a revision carries it"


async def test_resumed_after_what_was_seen_nothing_is_missed_or_repeated(world: World) -> None:
    await tell(world, "i-1")
    seen = (await world.api.events.ListEvents(ListEventsRequest())).revision
    more = [*(await tell(world, "i-1")), *(await tell(world, "i-1", "i-1"))]
    async with watching(world, after_revision=seen) as told:
        assert [(await told()).event.id for _ in more] == more


async def test_its_end_is_told_to_whoever_may_know_of_it(world: World) -> None:
    """To a watcher that was shown it; to one that resumed, of its own sight only; to nobody else."""
    await world.commit(Txn("api").create(kinds.PROJECT, ELSEWHERE, Project(id=ELSEWHERE, name="elsewhere")))
    held = await lease(world)
    (mine,) = await tell(world, "i-1", lease=held.id)
    await tell(world, "i-2", project=ELSEWHERE, lease=held.id)
    seen = world.cache.view.revision
    async with (
        watching(world, filter="object = i-1") as shown,
        watching(world, filter="reason = Other") as strange,
        watching(world, after_revision=seen, filter="reason = Told") as resumed,
    ):
        assert [(await shown()).type for _ in range(2)] == [UPSERT, BOOKMARK]
        assert (await strange()).type == BOOKMARK
        await held.close(revoke=True)
        for told in (shown, resumed):
            gone = await told()
            assert (gone.type, gone.event.id) == (DELETE, mine)
        (last,) = await tell(world, "i-3")
        assert (await resumed()).event.id == last, "what went elsewhere is not told"
        await world.commit(Txn("sync").put(kinds.EVENT, "ev-other", Event(id="ev-other", reason="Other")))
        assert (await strange()).event.id == "ev-other", "nor is anything to who never saw it"


async def test_a_revision_the_store_forgot_is_told(world: World) -> None:
    await tell(world, "i-1")
    old = world.cache.view.revision
    await tell(world, "i-1")
    await tell(world, "i-1")
    await world.store.compact(world.cache.view.revision)
    async with watching(world, after_revision=old) as told:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await told()
    assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_controller_that_has_fallen_behind_does_not_begin_at_what_the_store_forgot(world: World) -> None:
    await tell(world, "i-1")
    async with watching(world) as told:
        async with world.behind():
            await world.store.commit(Txn("sync").put(kinds.EVENT, "ev-late", Event(id="ev-late", reason="Late")))
            await world.store.compact(await world.store.revision())
            found, first = asyncio.create_task(listed(world, project="-")), asyncio.create_task(told())
            await asyncio.wait({found, first}, timeout=0.3)
        assert "ev-late" in await found
        assert (await first).type == UPSERT


async def test_many_watchers_leave_nothing_behind(world: World) -> None:
    for _ in range(5):
        async with watching(world) as told:
            await told()
    async with asyncio.timeout(10):
        while any(task.get_name() == "events" for task in asyncio.all_tasks()):
            await asyncio.sleep(0.01)
