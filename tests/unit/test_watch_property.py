"""Whoever watches, with whatever filter, breaking off and resuming wherever, ends with the picture a fresh list shows."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from cairn.controller.api import nouns
from cairn.controller.api.feed import Feed
from cairn.controller.api.listing import Listings
from cairn.controller.api.selection import Selection
from cairn.controller.api.watch import Watches
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Record
from cairn.controller.store.memory import MemoryStore
from cairn.controller.store.view import LiveView
from cairn.proto import kinds
from cairn.proto.v1.common_pb2 import CHANGE_TYPE_BOOKMARK, CHANGE_TYPE_DELETE
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.subnet_pb2 import Subnet, SubnetSpec
from cairn.proto.v1.vpc_pb2 import Vpc, WatchVpcsRequest, WatchVpcsResponse
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

ALICE = Caller("user", "admin")
PROJECTS = ("prj-00000001", "prj-00000002")
# Of the loop, after which who has something to say has said it.
TURNS = 50
IDS = [f"rtr-0000000{number}" for number in range(5)]
# An id is one object for ever, so it has one project.
PROJECT = {id: PROJECTS[number % 2] for number, id in enumerate(IDS)}
FILTERS = ("", "labels.a=x", "status.subnets>0", "labels.a=x AND status.subnets=0", f'id = "{IDS[1]}"')


class Cloud:
    """The records of VPCs and subnets, and what changed; each change is one revision."""

    def __init__(self) -> None:
        self.view = LiveView()
        for id in PROJECTS:
            self.view.table(kinds.PROJECT).put(id, Project(id=id, name=id).SerializeToString(), 1, 1)
        self.view.advance(1)
        self.feed = Feed(1)

    async def wait_for(self, revision: int) -> None:
        assert revision <= self.view.revision

    async def fresh(self) -> LiveView:
        return self.view

    def change(self, *changes: tuple[kinds.Kind[Any], str, Message | None]) -> None:
        revision, gone = self.view.revision + 1, dict[str, Message]()
        for kind, id, message in changes:
            if message is not None:
                self.view.table(kind).put(id, message.SerializeToString(), revision, revision)
            elif (last := self.view.table(kind).delete(id)) is not None:
                gone[kind.key(id)] = last
        self.view.advance(revision)
        self.feed.push(self.view, revision, [(kind, id) for kind, id, _ in changes], gone)

    def act(self, what: str, ids: list[str], label: str) -> None:
        """Several objects in one revision."""
        if what == "put":
            self.change(*((kinds.VPC, id, Vpc(id=id, name=id, project=PROJECT[id], labels={"a": label})) for id in ids))
        elif what == "delete":
            self.change(*((kinds.VPC, id, None) for id in ids))
        else:
            held = self.view.get(kinds.SUBNET, f"vxnet-{ids[0]}") is not None
            subnet = Subnet(id=f"vxnet-{ids[0]}", spec=SubnetSpec(vpc=ids[0], cidr="10.0.0.0/24"))
            self.change((kinds.SUBNET, subnet.id, None if held else subnet))


@dataclass
class Client:
    """One watcher; `limit` messages are taken each time, then the connection breaks."""

    cloud: Cloud
    filter: str
    project: str
    revision: int = 0
    shown: dict[str, Any] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def request(self) -> WatchVpcsRequest:
        return WatchVpcsRequest(project=self.project, filter=self.filter, after_revision=self.revision)

    def list(self) -> None:
        selection = Selection.of(self.cloud.view, ALICE, nouns.VPC, self.request(), watching=True)
        self.shown = {id: shown for id in selection.ids(self.cloud.view) if (shown := self.seen(selection, id)) is not None}
        self.revision = self.cloud.view.revision

    def seen(self, selection: Selection, id: str) -> Any:
        record: Record[Any] | None = self.cloud.view.record(kinds.VPC, id)
        return selection.shown(self.cloud.view, record)

    async def follow(self, limit: int, meanwhile: list[Any]) -> None:
        """Watch; some of the changes happen while messages are read."""
        listings = Listings(MemoryStore(), self.cloud, self.cloud.fresh)  # type: ignore[arg-type]
        watches = Watches(self.cloud, lambda: self.cloud.feed, listings)  # type: ignore[arg-type]
        if not self.revision:
            self.shown = {}
        async with aclosing(watches.watch(ALICE, nouns.VPC, self.request(), WatchVpcsResponse)) as told:
            for _ in range(limit):
                if meanwhile:
                    self.cloud.act(*meanwhile.pop())
                response = await at_once(told)
                if response is None:
                    return
                self.take(response)

    def take(self, response: WatchVpcsResponse) -> None:
        self.revision = max(self.revision, response.revision)
        if response.type == CHANGE_TYPE_BOOKMARK:
            return
        self.told.add(response.vpc.id)
        if response.type == CHANGE_TYPE_DELETE:
            self.shown.pop(response.vpc.id, None)
        else:
            self.shown[response.vpc.id] = response.vpc


async def at_once(told: Any) -> WatchVpcsResponse | None:
    """Return the next message, None when there is none without anything happening."""
    coming = asyncio.ensure_future(anext(told))
    for _ in range(TURNS):
        if coming.done():
            return coming.result()
        await asyncio.sleep(0)
    coming.cancel()
    await asyncio.wait([coming])
    return None


ACTION = st.tuples(
    st.sampled_from(("put", "put", "delete", "subnet")),
    st.lists(st.sampled_from(IDS), min_size=1, max_size=3, unique=True),
    st.sampled_from("xy"),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("act"), ACTION),
        st.tuples(st.just("follow"), st.integers(1, 4), st.lists(ACTION, max_size=2)),
        st.tuples(st.just("list")),
    ),
    max_size=14,
)


@settings(max_examples=120, deadline=None)
@given(STEPS, st.sampled_from(FILTERS), st.sampled_from((*PROJECTS, "-")))
async def test_a_watch_ends_with_what_a_list_shows(steps: list[Any], filter: str, project: str) -> None:
    cloud = Cloud()
    client = Client(cloud, filter, project)
    for step in [*steps, ("follow", 100, [])]:
        if step[0] == "act":
            cloud.act(*step[1])
        elif step[0] == "list":
            client.list()
        else:
            await client.follow(step[1], list(step[2]))
    fresh = Client(cloud, filter, project)
    fresh.list()
    assert client.shown == fresh.shown
    assert project == "-" or all(PROJECT[id] == project for id in client.told), "told of what another project has"
