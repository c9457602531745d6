"""A node's session: the record that says its agent is connected, held under a lease while the stream lives.

The record belongs to whoever wrote it last: an agent that reconnects, to this controller or another, takes it over by
writing it again under a new lease, and the older stream, which finds a message that is not its own, ends. Every write of the
record checks the revision it replaces, and what a node reports is written only together with a check of this record's
revision: so a stream that was superseded writes nothing any more, whatever it has not heard yet, and neither does a commit of
its that arrives late. Nor when the stream that superseded it is gone by now, and its record with it: who came last is written
besides, under no lease (LastSession), and who writes its record again checks that it is that one still.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cairn.controller.model.facts import figures, figures_changed, inventory_changed
from cairn.controller.model.unreadable import newest_revision
from cairn.controller.store.base import Conflict, Indeterminate, Lease, LeaseLost, Store, Txn, Unavailable, View
from cairn.controller.store.cache import Cache
from cairn.proto import kinds
from cairn.proto.log import logger
from cairn.proto.seams import Clock, timestamp
from cairn.proto.v1.agent_pb2 import Hello
from cairn.proto.v1.cluster_pb2 import LastSession
from cairn.proto.v1.node_pb2 import NodeFacts, NodeSession

_log = logger("sync")
WRITER: Final = "sync"
TTL_S: Final = 10.0
RETRY_S: Final = 0.5
# How often the record is looked at, though nobody said that it changed.
LOOK_S: Final = 30.0


class Session:
    """One stream's claim to speak for a node."""

    def __init__(self, store: Store, clock: Clock, hello: Hello, controller: str) -> None:
        self._store, self.node = store, hello.node
        self.message = NodeSession(
            node=hello.node,
            controller=controller,
            boot_id=hello.boot_id,
            endpoint=hello.endpoint,
            agent_version=hello.agent_version,
            capabilities=hello.capabilities,
            connect_time=timestamp(clock.now()),
        )
        self._lease: Lease | None = None
        # The record has changed, or its lease is lost.
        self._stirred = asyncio.Event()
        # Mod revision of our record; what reports are checked against.
        self.revision = 0
        # Mod revision of the mark that this stream came last; 0: it has not come yet.
        self._came = 0

    async def open(self, facts: NodeFacts | None, view: View) -> int:
        """Write the record in place of the one in the view, with the node's facts if they are new; return the revision.

        Raises StoreError; Conflict when the record has moved on meanwhile, or another stream has come since.
        """
        lease = await self._store.lease(TTL_S)
        txn = Txn(WRITER).check(kinds.NODE_SESSION, self.node, newest_revision(view, kinds.NODE_SESSION, self.node))
        txn.put(kinds.NODE_SESSION, self.node, self.message, lease=lease.id)
        if self._came:
            txn.check(kinds.NODE_LAST, self.node, self._came)
        else:
            since = self.message.connect_time
            txn.put(kinds.NODE_LAST, self.node, LastSession(controller=self.message.controller, since_time=since))
        if facts is not None and inventory_changed(view.get(kinds.NODE_FACTS, self.node), facts):
            txn.put(kinds.NODE_FACTS, self.node, facts)
        if facts is not None and figures_changed(view, self.node, facts):
            txn.put(kinds.NODE_POOLS, self.node, figures(facts))
        try:
            self.revision = await self._store.commit(txn)
        except BaseException:
            await lease.close(revoke=False)
            raise
        self._lease, self._came = lease, self._came or self.revision
        return self.revision

    async def keep(self, cache: Cache) -> None:
        """Write the record again whenever its lease is lost or it is not as we wrote it; return once another stream has come.

        A commit of ours that was given up as in doubt may arrive late, and put the record under a lease nobody keeps alive.
        """
        while True:
            if self._lease is not None:
                await self._until_gone(self._lease, cache)
                _log.warning("session_lost", node=self.node)
                await self._lease.close(revoke=False)
                self._lease = None
            try:
                # As fresh as the store: who took the record over a moment ago must be seen.
                await cache.wait_for(await self._store.revision())
                if self.superseded(cache.view):
                    _log.info("session_superseded", node=self.node)
                    return
                await self.open(None, cache.view)
            except (Conflict, Unavailable, Indeterminate, LeaseLost) as error:
                if isinstance(error, Conflict) and kinds.NODE_LAST.key(self.node) in error.keys:
                    _log.info("session_superseded", node=self.node)
                    return
                _log.warning("session_not_renewed", node=self.node, error=str(error))
                await asyncio.sleep(RETRY_S)

    def stir(self) -> None:
        """The record has changed: it is looked at."""
        self._stirred.set()

    async def _until_gone(self, lease: Lease, cache: Cache) -> None:
        """Return once the lease is lost, or the record is not as we wrote it."""
        lost = asyncio.ensure_future(lease.wait_lost())
        lost.add_done_callback(lambda _: self._stirred.set())
        try:
            while not lease.lost and not self._is_replaced(cache.view):
                self._stirred.clear()
                stirred = asyncio.ensure_future(self._stirred.wait())
                try:
                    await asyncio.wait({stirred}, timeout=LOOK_S)
                finally:
                    stirred.cancel()
        finally:
            lost.cancel()

    def _is_replaced(self, view: View) -> bool:
        return view.revision >= self.revision and view.revision_of(kinds.NODE_SESSION, self.node) != self.revision

    def superseded(self, view: View) -> bool:
        """Tell whether another stream speaks for the node now."""
        record = view.record(kinds.NODE_SESSION, self.node)
        if record is None or not self.revision:
            return False
        return record.mod_revision > self.revision and record.message != self.message

    async def close(self, *, revoke: bool) -> None:
        """Let go. revoke: the agent said good-bye, or is dead; else the record runs out, unless it is taken over first.

        A record taken over is under another lease and stays in either case.
        """
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        try:
            await lease.close(revoke=revoke and not lease.lost)
        except (Unavailable, LeaseLost) as error:
            _log.warning("session_left_to_run_out", node=self.node, error=str(error))
