"""What a node holds that nobody told it to hold: recorded for people, who adopt it or have it removed (docs/decisions/0013).

A record per object, written once with its Event, and again when it says something else; removed when the node does not name
it any more: it is gone, or known again. Like reports, records are written only while this stream speaks for the node.
User data and keys in it are sealed, as they are in a VM's secret: who adopts the VM makes that its secret.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cairn.controller.events import RECORDS, Leases, tell
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.nodes import node_name
from cairn.controller.model.restored import CLUSTER_ID
from cairn.controller.model.unreadable import newest_revision
from cairn.controller.node_session import RETRY_S, WRITER, Session
from cairn.controller.store.base import Conflict, Indeterminate, LeaseLost, Store, Txn, Unavailable, View
from cairn.controller.store.cache import Cache
from cairn.proto import kinds
from cairn.proto.log import logger
from cairn.proto.sealing import SealError, Seals
from cairn.proto.seams import Clock, Ids, moment, timestamp
from cairn.proto.v1.agent_pb2 import Desired, NodeHeard, Unknown
from cairn.proto.v1.secret_pb2 import VmData

_log = logger("sync")
KINDS: Final = frozenset({kinds.VM.name, kinds.VOLUME.name, kinds.IMAGE.name})
# Written at a time: user data makes some of them large.
AT_ONCE_BYTES: Final = 400_000
AT_ONCE: Final = 20
# What a node may have waiting here, and name at most.
PENDING_MAX: Final = 20_000


class Unknowns:
    """What one stream has been told and not written yet."""

    def __init__(
        self, cache: Cache, store: Store, clock: Clock, ids: Ids, leases: Leases, seals: Seals, session: Session
    ) -> None:
        self._cache, self._store, self._clock, self._ids, self._leases = cache, store, clock, ids, leases
        self._seals, self._session, self._node = seals, session, session.node
        self._told: dict[str, Unknown] = {}
        self._keys: frozenset[str] | None = None
        # Epoch of the snapshot that the keys were compared with.
        self._epoch = 0
        self._some = asyncio.Event()

    def unknown(self, told: Unknown) -> bool:
        """Take one; False when it is nothing that can be unknown, or there are too many."""
        if told.key.partition("/")[0] not in KINDS or len(self._told) >= PENDING_MAX:
            return False
        self._told[told.key] = told
        if self._keys is not None:
            # The names of all follow: until then it is not gone only because the last ones had not named it.
            self._keys |= {told.key}
        self._some.set()
        return True

    def keys(self, keys: list[str], epoch: int = 0) -> bool:
        """Take the names of all that is unknown; False when there are too many. epoch: of what they were compared with."""
        if len(keys) > PENDING_MAX:
            return False
        self._keys, self._epoch = frozenset(keys), epoch
        self._some.set()
        return True

    async def run(self) -> None:
        """Write what comes in until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._told or self._gone() or self._newly_heard():
                await self._write()

    def _gone(self) -> list[str]:
        """Return ids of the records that the node does not name any more."""
        if self._keys is None:
            return []
        stored = self._cache.view.by(kinds.UNKNOWN, "node", self._node)
        return [id for id in stored if id.partition("/")[2] not in self._keys][:AT_ONCE]

    def _newly_heard(self) -> bool:
        """Tell whether the node has said all that restored records may not know, and that is not recorded yet."""
        cluster = self._cache.view.get(kinds.CLUSTER, CLUSTER_ID)
        if cluster is None or not cluster.HasField("restored") or self._keys is None or self._epoch != cluster.epoch:
            return False
        heard = self._cache.view.get(kinds.NODE_HEARD, self._node)
        return heard is None or heard.epoch != cluster.epoch

    async def _write(self) -> None:
        """Write some of what waits; what could not be written waits on."""
        told, gone = self._some_told(), self._gone()
        try:
            txn = await self._txn(told, gone)
            if txn:
                txn.check(kinds.NODE_SESSION, self._node, self._session.revision)
                await self._cache.wait_for(await self._store.commit(txn))
        except (Conflict, Indeterminate, LeaseLost, Unavailable) as error:
            if isinstance(error, LeaseLost):
                self._leases.forget()
            _log.info("unknown_again", node=self._node, error=str(error))
            await asyncio.sleep(RETRY_S)
            return
        for key, each in told.items():
            if self._told.get(key) is each:
                del self._told[key]

    def _some_told(self) -> dict[str, Unknown]:
        taken, size_bytes = dict[str, Unknown](), 0
        for key, each in list(self._told.items())[:AT_ONCE]:
            size_bytes += each.ByteSize()
            if taken and size_bytes > AT_ONCE_BYTES:
                break
            taken[key] = each
        return taken

    async def _txn(self, told: dict[str, Unknown], gone: list[str]) -> Txn:
        view, txn, events, now = self._cache.view, Txn(WRITER), list[EventSpec](), self._clock.now()
        for key, each in told.items():
            id = f"{self._node}/{key}"
            before = view.get(kinds.UNKNOWN, id)
            record = Unknown()
            record.CopyFrom(each)
            record.node = self._node
            record.since_time.CopyFrom(before.since_time if before is not None else timestamp(now))
            self._seal(record)
            if record == before and id not in view.unreadable(kinds.UNKNOWN):
                continue
            txn.check(kinds.UNKNOWN, id, newest_revision(view, kinds.UNKNOWN, id)).put(kinds.UNKNOWN, id, record)
            if before is None:
                events.append(_event(view, record))
        for id in gone:
            txn.check(kinds.UNKNOWN, id, newest_revision(view, kinds.UNKNOWN, id)).delete(kinds.UNKNOWN, id)
        if not txn and not self._told and self._newly_heard():
            txn.check(kinds.NODE_HEARD, self._node, newest_revision(view, kinds.NODE_HEARD, self._node))
            txn.put(kinds.NODE_HEARD, self._node, NodeHeard(node=self._node, epoch=self._epoch))
        if events:
            tell(txn, events, now=now, ids=self._ids, lease=await self._leases.lease(RECORDS * len(events)))
        return txn

    def _seal(self, record: Unknown) -> None:
        """Seal what is secret in it; the same again for the same. Without a key it is left out."""
        vm = record.desired.vm
        data = VmData(ssh_keys=vm.ssh_keys, user_data=vm.user_data)
        content = data.SerializeToString(deterministic=True)
        if not content:
            return
        vm.ClearField("ssh_keys")
        vm.ClearField("user_data")
        try:
            vm.sealed.CopyFrom(self._seals.seal(record.key, content, moment(record.since_time)))
        except SealError as error:
            _log.warning("secret_left_out", node=self._node, key=record.key, error=str(error))


def title(record: Unknown) -> str:
    """Return what to call something unknown: "VM web (i-...)", "volume vol-..."."""
    kind, _, id = record.key.partition("/")
    name = record.desired.vm.name if kind == kinds.VM.name else ""
    what = "VM" if kind == kinds.VM.name else kind
    return f"{what} {name} ({id})" if name else f"{what} {id}"


def absent(record: Unknown) -> Desired:
    """Return what tells a node to remove something unknown."""
    kind, _, id = record.key.partition("/")
    desired = Desired()
    if kind == kinds.VM.name:
        vm = record.desired.vm
        desired.vm.id, desired.vm.name, desired.vm.project, desired.vm.absent = id, vm.name, vm.project, True
    elif kind == kinds.VOLUME.name:
        told = record.desired.volume
        desired.volume.id, desired.volume.type, desired.volume.absent = id, told.type, True
        desired.volume.pool, desired.volume.generation = told.pool, told.generation
    else:
        image = record.desired.image
        desired.image.id, desired.image.digest, desired.image.absent = id, image.digest or id, True
    return desired


def _event(view: View, record: Unknown) -> EventSpec:
    name, (_, _, id) = node_name(view, record.node), record.key.partition("/")
    say = f"{name} holds {title(record)}, which it is not told to hold: {record.say}, and stays so"
    about = record.desired.vm
    return EventSpec(id, about.name, about.project, "Unknown", f"{say}; see `cairn node show {name}`", name, warning=True)
