"""The last step of the stream: what is sealed is opened for the node it is for."""

from __future__ import annotations

from cairn.controller.store.base import Txn
from cairn.proto import kinds
from cairn.proto.sealing import KEY_BYTES, Seals
from cairn.proto.seams import SystemClock
from cairn.proto.v1.secret_pb2 import VmData

from tests.unit.sync_kit import N1, agent, world


async def test_a_node_is_sent_what_is_sealed_for_it_opened() -> None:
    seals = Seals([bytes(KEY_BYTES)])
    async with world() as at:
        (service,) = at.services
        vm = at.cloud.vm("a", node=N1)
        data = VmData(ssh_keys=["ssh-ed25519 A"], user_data=b"#!/bin/sh\n").SerializeToString()
        await at.decided()
        await at.store.commit(Txn("api").put(kinds.SECRET, f"vm/{vm}", seals.seal(f"vm/{vm}", data, SystemClock().now())))
        here = agent(at)
        await at.until(lambda: here.bookmarks)
        # This controller holds no key: the node is told nothing of the VM, rather than of one without its user data.
        assert f"vm/{vm}" not in here.objects
        await here.break_off()
        service.seals = seals
        again = agent(at)
        await at.until(lambda: again.bookmarks)
        sent = again.objects[f"vm/{vm}"].vm
        assert (list(sent.ssh_keys), sent.user_data, sent.HasField("sealed")) == (["ssh-ed25519 A"], b"#!/bin/sh\n", False)
        data = VmData(user_data=b"#!/bin/bash\n").SerializeToString()
        await at.store.commit(Txn("api").put(kinds.SECRET, f"vm/{vm}", seals.seal(f"vm/{vm}", data, SystemClock().now())))
        await at.until(lambda: again.objects[f"vm/{vm}"].vm.user_data == b"#!/bin/bash\n")
        await again.break_off()
