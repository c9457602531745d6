"""What `cairn cluster status` says first, and of each member of the store."""

from __future__ import annotations

from cairn.controller.api.cluster import sentence
from cairn.controller.cli.cluster import _member, status_details
from cairn.proto.v1.cluster_pb2 import GetClusterStatusResponse, StoreMember


def status(*members: StoreMember) -> GetClusterStatusResponse:
    return GetClusterStatusResponse(nodes_ready=3, vms=2, vms_running=2, members=members)


def test_a_full_store_is_not_called_silent() -> None:
    full = StoreMember(
        endpoint="m1:2379", size_bytes=2 << 30, used_bytes=1 << 30, alarms=["NOSPACE"], say="NOSPACE", version="3.4.23"
    )
    well = StoreMember(endpoint="m2:2379", healthy=True, leader=True, size_bytes=2 << 30, quota_bytes=8 << 30, version="3.6.1")
    say = sentence(status(full, well))
    assert "store member m1:2379: NOSPACE" in say
    assert "the store is full, nothing can be changed" in say
    assert "`etcdctl alarm disarm`" in say
    assert "does not answer" not in say
    assert _member(full) == "NOSPACE, 2 GiB (1 GiB in use), 3.4.23"
    assert _member(well) == "healthy, leader, 2 GiB of 8 GiB, 3.6.1"


def test_other_troubles_of_members_have_their_names() -> None:
    silent = StoreMember(endpoint="m1:2379", say="it does not answer")
    lost = StoreMember(endpoint="m2:2379", say="it knows no leader", version="3.4.23")
    corrupt = StoreMember(endpoint="m3:2379", alarms=["CORRUPT"], say="CORRUPT", version="3.4.23")
    learner = StoreMember(endpoint="m4:2379", healthy=True, learner=True, version="3.4.23")
    say = sentence(status(silent, lost, corrupt, learner))
    assert "m1:2379: it does not answer" in say
    assert "m2:2379: it knows no leader" in say
    assert "m3:2379: CORRUPT" in say
    assert "m4" not in say
    assert _member(learner) == "healthy, learner, without a vote, 3.4.23"


def test_who_is_down_is_named_and_what_nodes_know_better_is_no_health() -> None:
    answer = status()
    answer.nodes_down, answer.nodes_down_names[:] = 1, ["n3"]
    assert sentence(answer) == "n3 does not answer; its guests may be running: see `systemctl status cairn-agent` there"
    answer.nodes_down, answer.nodes_down_names[:] = 7, ["n1", "n2", "n3", "n4", "n5"]
    assert "n1, n2, n3, n4, n5 and 2 more do not answer" in sentence(answer)
    answer = status()
    answer.unknown, answer.vms_unknown = 3, 1
    assert sentence(answer) == "nodes know 3 things better than the records: `cairn cluster adopt` lists them"
    assert ("VMs", "2, 2 running, 1 on nodes that do not answer") in list(status_details(answer))


def test_a_node_whose_hypervisor_is_silent_is_no_health() -> None:
    answer = status()
    answer.nodes_degraded, answer.nodes_degraded_names[:] = 1, ["n2"]
    assert sentence(answer) == (
        "the hypervisor does not answer on n2, where no new VM goes: see `systemctl status libvirtd` there"
    )
    assert ("Nodes", "3 ready, 1 of them degraded") in list(status_details(answer))
