"""Placement under random histories and stale decisions: claims are what is placed, and never more than there is.

One pool is shared by two of the nodes, and one node begins with a volume that an older release placed and claimed.
"""

from __future__ import annotations

from cairn.controller.model.nodes import capacity
from cairn.controller.model.where import explained
from cairn.controller.reconcilers.placement import Placements
from cairn.controller.store.base import Conflict, Txn
from cairn.proto import kinds
from cairn.proto.v1.vm_pb2 import NodeClaims
from cairn.proto.v1.volume_pb2 import VolumePlacement
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.cloud_kit import GIB, MIB, NOW, Cloud, absent_everywhere


class Placing(RuleBasedStateMachine):
    """VMs come, grow, go and come back; decisions are held back and committed late."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = Cloud()
        shared = ({}, {"tank": 6 * GIB}, {"tank": 6 * GIB})
        self.nodes = [
            self.cloud.node(f"n{i}", memory=(1 + i) * GIB, threads=1 + i, disk=(4 + i) * GIB, shared=shared[i])
            for i in range(3)
        ]
        old = VolumePlacement(volume=self.cloud.volume("old"), node=self.nodes[0], disk_bytes=GIB)
        self.cloud.put(kinds.VOLUME_PLACEMENT, old.volume, old)
        self.cloud.put(kinds.NODE_CLAIMS, old.node, NodeClaims(node=old.node, disk_bytes=GIB))
        self.placements = Placements()
        self.held: list[Txn] = []
        self.made = 0

    def pick(self, number: int) -> str:
        vms = sorted(self.cloud.view.ids(kinds.VM))
        return vms[number % len(vms)]

    @rule(cpus=st.integers(1, 6), memory=st.integers(1, 8), disk=st.integers(0, 3), type=st.sampled_from(["local", "net"]))
    def create(self, cpus: int, memory: int, disk: int, type: str) -> None:
        self.made += 1
        self.cloud.vm(f"v{self.made}", cpus=cpus, memory=memory * 256 * MIB, disk=disk * GIB, type=type)

    @precondition(lambda self: self.cloud.view.count(kinds.VM) > 0)
    @rule(number=st.integers(0), cpus=st.integers(1, 6), memory=st.integers(1, 8))
    def resize(self, number: int, cpus: int, memory: int) -> None:
        vm = self.cloud.edit(kinds.VM, self.pick(number))
        vm.spec.cpus, vm.spec.memory_bytes = cpus, memory * 256 * MIB
        self.cloud.put(kinds.VM, vm.id, vm)

    @precondition(lambda self: self.cloud.view.count(kinds.VM) > 0)
    @rule(number=st.integers(0))
    def remove(self, number: int) -> None:
        vm = self.pick(number)
        self.cloud.delete_vm(vm)
        absent_everywhere(self.cloud, [vm])

    @precondition(lambda self: self.cloud.view.count(kinds.VM) > 0)
    @rule(number=st.integers(0))
    def bring_back(self, number: int) -> None:
        self.cloud.undelete_vm(self.pick(number))

    @precondition(lambda self: self.cloud.view.count(kinds.VM) > 0)
    @rule(number=st.integers(0))
    def erase(self, number: int) -> None:
        vm = self.pick(number)
        for volume in self.cloud.view.by(kinds.VOLUME, "vm", vm):
            self.cloud.delete(kinds.VOLUME, volume)
        self.cloud.delete(kinds.VM, vm)

    @rule(which=st.integers(0, 2), up=st.booleans())
    def connection(self, which: int, up: bool) -> None:
        if up:
            self.cloud.connect(self.nodes[which])
        else:
            self.cloud.delete(kinds.NODE_SESSION, self.nodes[which])

    @rule(number=st.integers(0), hold=st.booleans())
    def decide(self, number: int, hold: bool) -> None:
        self.placements.follow(self.cloud.view, self.cloud.take())
        keys = sorted(set(self.placements.all_keys(self.cloud.view)))
        if not keys:
            return
        outcome = self.placements.reconcile(self.cloud.view, keys[number % len(keys)], NOW)
        if outcome.txn and hold:
            self.held.append(outcome.txn)
        elif outcome.txn:
            self.cloud.commit(outcome.txn)

    @precondition(lambda self: bool(self.held))
    @rule(number=st.integers(0))
    def commit_late(self, number: int) -> None:
        try:
            self.cloud.commit(self.held.pop(number % len(self.held)))
        except Conflict:
            return

    @invariant()
    def claims_are_what_is_placed_and_fit(self) -> None:
        view = self.cloud.view
        for id in self.nodes:
            claims, node, facts = view.get(kinds.NODE_CLAIMS, id), view.get(kinds.NODE, id), view.get(kinds.NODE_FACTS, id)
            held = [
                placement
                for vm in view.by(kinds.PLACEMENT, "node", id)
                if (placement := view.get(kinds.PLACEMENT, vm)) is not None and not placement.released
            ]
            if claims is None:
                assert not held
                continue
            assert claims.cpus == sum(each.cpus for each in held)
            assert claims.memory_bytes == sum(each.memory_bytes for each in held)
            assert claims.vms == len(held)
            assert node is not None
            assert facts is not None
            most = capacity(node, facts)
            assert claims.cpus <= most.cpus
            assert claims.memory_bytes <= most.memory_bytes

    @invariant()
    def pools_are_promised_once(self) -> None:
        places = list(self.cloud.view.all(kinds.VOLUME_PLACEMENT))
        capacity_bytes = {f"local/{id}": int((4 + i) * GIB * 0.95) for i, id in enumerate(self.nodes)}
        for pool, most in {**capacity_bytes, "net/tank": int(6 * GIB * 0.95)}.items():
            placed = [place for place in places if (place.pool or f"local/{place.node}") == pool]
            assert all(place.node == pool.removeprefix("local/") or (pool == "net/tank" and not place.node) for place in placed)
            claims = self.cloud.view.get(kinds.POOL_CLAIMS, pool)
            old = self.cloud.view.get(kinds.NODE_CLAIMS, pool.removeprefix("local/"))
            claimed = (claims.disk_bytes if claims is not None else 0) + (old.disk_bytes if old is not None else 0)
            assert claimed == sum(place.disk_bytes for place in placed)
            assert claimed <= most

    @invariant()
    def guests_reach_their_volumes(self) -> None:
        view = self.cloud.view
        for placement in view.all(kinds.PLACEMENT):
            if placement.node == self.nodes[0] and not placement.released:
                volumes = view.by(kinds.VOLUME, "vm", placement.vm)
                pools = [place.pool for id in volumes if (place := view.get(kinds.VOLUME_PLACEMENT, id)) is not None]
                assert "net/tank" not in pools

    @invariant()
    def decisions_add_up(self) -> None:
        for placement in self.cloud.view.all(kinds.PLACEMENT):
            decision = explained(self.cloud.view, placement.vm, self.cloud.stored(kinds.DECISION, placement.vm))
            assert decision is not None
            refused = sum(each.refused for each in decision.filters)
            assert refused == decision.considered if not placement.node else refused < decision.considered
            assert bool(placement.node) == bool(decision.top)

    def teardown(self) -> None:
        self.cloud.settle([self.placements])


TestPlacing = Placing.TestCase
TestPlacing.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
