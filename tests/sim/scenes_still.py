"""Scenes of the checker no_plan: what may change while all is at rest, and what must not; see stage.py."""

from __future__ import annotations

from cairn.proto.v1.cluster_pb2 import PlanRecord
from cairn.proto.v1.common_pb2 import Decision
from cairn.proto.v1.node_pb2 import NodeFacts, NodePools, StoragePool
from cairn.proto.v1.vm_pb2 import Placement

from tests.sim.stage import GIB, NODE, SCENES, Stage, facts, node, placement, scene, session, vm

__all__ = ["SCENES"]


def _machine(numa_bytes: int = GIB) -> tuple[str, str, NodeFacts]:
    made = facts()
    made[2].numa.add(memory_bytes=numa_bytes)
    return made


def _at_rest(stage: Stage) -> None:
    stage.commit(vm(), node(), _machine())
    stage.host(effects=3, boots=1, ledger={"vm/i-1": (1, 1)})
    stage.said += stage.checker.resting(stage.cloud, True)


def _fuller(used_bytes: int = 5) -> tuple[str, str, NodePools]:
    return "node_pools", NODE, NodePools(pools=[StoragePool(type="local", used_bytes=used_bytes)])


@scene("no_plan")
def nothing_changes(stage: Stage) -> None:
    _at_rest(stage)
    stage.commit(session())
    more = _machine(2 * GIB)
    more[2].pools[0].used_bytes = 5
    stage.commit(more, _fuller())
    stage.commit(_fuller(6))
    stage.commit(("plan", "plan-1", PlanRecord(plan_id="plan-1")))
    stage.host(effects=3, boots=1, ledger={"vm/i-1": (1, 9)})
    stage.said += stage.checker.resting(stage.cloud, False)
    stage.host(effects=4)
    stage.commit(vm(name="new"))


@scene("no_plan", "n1 did something")
def a_host_felt_something(stage: Stage) -> None:
    _at_rest(stage)
    stage.host(effects=4, boots=1, ledger={"vm/i-1": (1, 1)})


@scene("no_plan", "n1 did something")
def a_node_was_told_something_new(stage: Stage) -> None:
    _at_rest(stage)
    stage.host(effects=3, boots=1, ledger={"vm/i-1": (1, 1), "vm/i-2": (1, 2)})


@scene("no_plan", "node_facts/node-1 was written")
def a_machine_was_written_anew_for_its_pools(stage: Stage) -> None:
    _at_rest(stage)
    fuller = _machine()
    fuller[2].pools[0].used_bytes = 5
    stage.commit(fuller)


@scene("no_plan", "placement/i-1 was written")
def something_was_decided(stage: Stage) -> None:
    _at_rest(stage)
    stage.commit(placement())


def _waits(say: str, node: str = "") -> tuple[str, str, Placement]:
    return "placement", "i-1", Placement(vm="i-1", node=node, decision=Decision(say=say))


@scene("no_plan")
def what_waits_is_told_of_todays_room(stage: Stage) -> None:
    stage.commit(_waits("no node fits: n1 lacks memory: the most free is 7 GiB on n1, 14 GiB wanted"))
    _at_rest(stage)
    stage.commit(_waits("no node fits: n1 lacks memory: the most free is 6.5 GiB on n2, 14 GiB wanted"))


@scene("no_plan", "placement/i-1 was written")
def what_waits_waits_for_something_else(stage: Stage) -> None:
    stage.commit(_waits("no node fits: n1 lacks memory: the most free is 7 GiB on n1, 14 GiB wanted"))
    _at_rest(stage)
    stage.commit(_waits("no node fits: n1 is cordoned"))


@scene("no_plan", "plan/plan-1 was written")
def a_plan_became_another(stage: Stage) -> None:
    _at_rest(stage)
    stage.commit(("plan", "plan-1", PlanRecord(plan_id="plan-1")))
    stage.commit(("plan", "plan-1", PlanRecord(plan_id="plan-1", method="CreateVm")))


@scene("no_plan", "node_facts/node-1 was written")
def a_node_became_another(stage: Stage) -> None:
    _at_rest(stage)
    stage.commit(facts(threads=9))
