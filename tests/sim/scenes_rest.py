"""What must be at rest, and when all is gone, checker by checker; see stage.py."""

from __future__ import annotations

from typing import Any

from cairn.proto.v1.agent_pb2 import VmReport
from cairn.proto.v1.api_token_pb2 import ApiToken
from cairn.proto.v1.cluster_pb2 import RequestRecord
from cairn.proto.v1.secret_pb2 import Secret
from cairn.proto.v1.vm_pb2 import Nic

from tests.sim.asked import Asked, AskedVolume
from tests.sim.stage import (
    DIGEST,
    GIB,
    IMAGE,
    NODE,
    OTHER,
    PORT,
    SCENES,
    SUBNET,
    VM,
    VOLUME,
    VPC,
    Stage,
    asked,
    binding,
    claims,
    content,
    defined,
    facts,
    guest,
    image,
    job,
    node,
    place,
    placement,
    port,
    said,
    scene,
    session,
    subnet,
    vm,
    volume,
    vpc,
)

__all__ = ["SCENES"]


# --- as_asked -----------------------------------------------------------------------------------------------------------------


def _placed(stage: Stage, **spec: Any) -> None:
    """One VM with its root volume on a node that has its name."""
    stage.commit(image(), content(NODE), node(), facts(), session(), placement(), place())
    stage.commit(vm(image=IMAGE, root_volume=VOLUME, **spec), volume(vm=VM, boot=True, delete_with_vm=True))


def _runs(stage: Stage, cpus: int = 1, volumes: tuple[str, ...] = (VOLUME,), **more: Any) -> None:
    made = {"guests": guest(volumes=volumes, cpus=cpus), "definitions": defined(VM, *volumes), "volumes": {VOLUME: GIB}, **more}
    stage.host(**made)


@scene("as_asked")
def it_runs(stage: Stage) -> None:
    _placed(stage)
    _runs(stage)
    stage.settle(asked())


@scene("as_asked", "does not run")
def it_does_not_run(stage: Stage) -> None:
    _placed(stage)
    stage.host()
    stage.settle(asked())


@scene("as_asked", "runs and shall not")
def it_runs_though_stopped(stage: Stage) -> None:
    _placed(stage)
    _runs(stage)
    stage.settle(asked(running=False))


@scene("as_asked")
def it_is_off(stage: Stage) -> None:
    _placed(stage)
    _runs(stage, guests={})
    stage.settle(asked(running=False))


@scene("as_asked", "nobody asked for it")
def nobody_asked(stage: Stage) -> None:
    _placed(stage)
    _runs(stage)
    stage.settle()


@scene("as_asked", "nobody says that they are to change")
def it_has_too_many_cpus(stage: Stage) -> None:
    _placed(stage)
    _runs(stage, cpus=2)
    stage.commit(said("vm/i-1", vm=VmReport(say="running")))
    stage.settle(asked())


@scene("as_asked")
def it_gets_its_cpus_at_the_next_start(stage: Stage) -> None:
    _placed(stage)
    _runs(stage, cpus=2)
    stage.commit(said("vm/i-1", vm=VmReport(say="running; its new configuration takes effect when it is restarted")))
    stage.settle(asked())


@scene("as_asked", "is defined with 2 CPUs")
def its_configuration_is_old(stage: Stage) -> None:
    _placed(stage)
    _runs(stage, definitions=defined(VM, VOLUME, cpus=2))
    stage.settle(asked())


@scene("as_asked", "has the volumes")
def it_lacks_a_volume(stage: Stage) -> None:
    _placed(stage)
    _runs(stage)
    stage.settle(asked(volumes={"vol-2"}))


def _no_room(stage: Stage, say: str, threads: int) -> Asked:
    stage.commit(image(), node(), facts(threads=threads), session(), vm(image=IMAGE, root_volume=VOLUME), volume(vm=VM))
    stage.commit(placement(node="", say=say), claims())
    stage.host()
    return asked()


@scene("as_asked")
def no_node_has_room_and_it_says_so(stage: Stage) -> None:
    stage.settle(_no_room(stage, "no node fits", threads=0))


@scene("as_asked", "is placed nowhere and is not told why")
def no_node_has_room_and_nobody_says_so(stage: Stage) -> None:
    stage.settle(_no_room(stage, "", threads=0))


@scene("as_asked", "does not run")
def a_node_has_room_and_it_is_nowhere(stage: Stage) -> None:
    stage.settle(_no_room(stage, "no node fits", threads=1))


@scene("as_asked", "does not run")
def without_an_address_though_some_are_free(stage: Stage) -> None:
    _placed(stage, nics=[Nic(subnet=SUBNET, port=PORT)])
    stage.commit(vpc(), subnet(), port(), binding(address=""))
    stage.host(volumes={VOLUME: GIB})
    stage.settle(asked())


@scene("as_asked", "is not on n1, where it is kept")
def a_deleted_vm_lost_its_disk(stage: Stage) -> None:
    _placed(stage)
    stage.commit(vm(gone=True, root_volume=VOLUME), placement(released=True))
    stage.host()
    stage.settle(asked(deleted=True))


@scene("as_asked", "still holds CPU and memory")
def a_deleted_vm_holds_memory(stage: Stage) -> None:
    _placed(stage)
    stage.commit(vm(gone=True, root_volume=VOLUME))
    stage.host(volumes={VOLUME: GIB})
    stage.settle(asked(deleted=True))


@scene("as_asked", "has 1073741824 bytes, not 2147483648")
def a_volume_did_not_grow(stage: Stage) -> None:
    stage.commit(volume())
    stage.settle(Asked(volumes={VOLUME: AskedVolume(VOLUME, "vol1", "u", 2 * GIB)}))


@scene("as_asked", "is attached to i-1, not to")
def a_volume_is_attached_to_another(stage: Stage) -> None:
    stage.commit(volume(vm=VM))
    stage.settle(Asked(volumes={VOLUME: AskedVolume(VOLUME, "vol1", "u", GIB)}))


@scene("as_asked", "still runs on n1")
def it_runs_when_all_is_gone(stage: Stage) -> None:
    stage.host(guests=guest())
    stage.empty()


# --- orphans, answers, contests, jobs_end -------------------------------------------------------------------------------------


@scene("orphans", "the record secret/api_token/tok-1 is left")
def what_a_key_signed_with_is_left(stage: Stage) -> None:
    stage.commit(("secret", "api_token/tok-1", Secret(id="api_token/tok-1")))
    stage.empty()


@scene("orphans")
def a_key_that_a_restore_brought_back(stage: Stage) -> None:
    stage.commit(("secret", "api_token/tok-1", Secret(id="api_token/tok-1")), ("api_token", "tok-1", ApiToken(id="tok-1")))
    stage.empty()


@scene("orphans")
def nothing_left(stage: Stage) -> None:
    stage.commit(node(), claims())
    stage.host(images=frozenset({DIGEST}), ports={VPC: frozenset()})
    stage.empty()


def _left(what: str, says: str, **fields: Any) -> None:
    def play(stage: Stage) -> None:
        stage.host(**fields)
        stage.empty()

    play.__name__ = f"{what}_left"
    scene("orphans", says)(play)


_left("a_configuration", "configurations are left on n1", definitions=defined())
_left("a_file", "files are left on n1", files=frozenset({VM}))
_left("a_volume", "volumes are left on n1", volumes={VOLUME: GIB})
_left("a_port", "ports are left on n1", ports={VPC: frozenset({PORT})})


@scene("orphans", "record placement/i-1 is left")
def a_record_left(stage: Stage) -> None:
    stage.commit(placement())
    stage.empty()


@scene("orphans", "is still claimed")
def a_claim_left(stage: Stage) -> None:
    stage.commit(claims(cpus=1))
    stage.empty()


@scene("answers")
def told_and_true(stage: Stage) -> None:
    stage.commit(vm(), ("request", "u/r", RequestRecord(object="vm/i-1")))
    stage.settle(Asked(vms=asked().vms, answers={"r": VM}, erased={"i-2": None}))


@scene("answers", "nobody erased it, and it is gone")
def what_was_made_is_gone(stage: Stage) -> None:
    stage.settle(asked())


@scene("answers", "is deleted, which is not what was asked for")
def deleted_by_nobody(stage: Stage) -> None:
    stage.commit(vm(gone=True))
    stage.settle(asked())


@scene("answers", "i-1 was to be erased and is there")
def erased_and_there(stage: Stage) -> None:
    stage.commit(vm())
    stage.settle(Asked(erased={VM: None}))


@scene("answers", "was answered with vm/i-1, then with vm/i-2")
def answered_twice(stage: Stage) -> None:
    stage.commit(("request", "r", RequestRecord(object="vm/i-1")))
    stage.commit(("request", "r", RequestRecord(object="vm/i-2")))


@scene("answers", "its record says vm/i-2")
def answered_with_another(stage: Stage) -> None:
    stage.commit(("request", "u/r", RequestRecord(object="vm/i-2")))
    stage.settle(Asked(answers={"r": VM}))


@scene("answers")
def refused_and_remembered(stage: Stage) -> None:
    stage.commit(("request", "u/r", RequestRecord(object="vm/", refusal=b"status")))
    stage.settle(Asked(refused={"r": "FAILED_PRECONDITION", "never recorded": "NOT_FOUND"}))


@scene("answers", "request r was refused .*, and was carried out: vm/i-1")
def refused_and_carried_out(stage: Stage) -> None:
    stage.commit(("request", "u/r", RequestRecord(object="vm/i-1")))
    stage.settle(Asked(refused={"r": "FAILED_PRECONDITION"}))


@scene("answers", "contradiction")
def contradicted(stage: Stage) -> None:
    stage.settle(Asked(contradictions=["a contradiction"]))


@scene("contests")
def one_winner(stage: Stage) -> None:
    told = Asked()
    contest = told.contest("the name web")
    contest.asked, contest.won, contest.lost = 2, [VM], 1
    stage.settle(told)


@scene("contests", "the name web")
def two_winners(stage: Stage) -> None:
    told = Asked()
    contest = told.contest("the name web")
    contest.asked, contest.won = 2, [VM, "i-2"]
    stage.settle(told)


@scene("jobs_end")
def imported(stage: Stage) -> None:
    stage.commit(image(), content(NODE), *job(done=True), node(), session())
    stage.host(images=frozenset({DIGEST}))
    stage.settle()


@scene("jobs_end")
def waits_for_its_bytes(stage: Stage) -> None:
    stage.commit(image(), content(NODE, virtual_size_bytes=0), *job(state="upload"))
    stage.host()
    stage.settle()


@scene("jobs_end", "its state is left")
def it_goes_and_its_state_stays(stage: Stage) -> None:
    stage.commit(*job(done=True))
    stage.commit(("job", "j-1", None))


@scene("jobs_end")
def it_goes_whole(stage: Stage) -> None:
    stage.commit(*job(done=True))
    stage.commit(("job", "j-1", None), ("job_state", "j-1", None))


@scene("jobs_end", "job j-1 has not ended: replicate")
def under_way(stage: Stage) -> None:
    stage.commit(image(), content(NODE), *job(state="replicate"))
    stage.settle()


@scene("jobs_end", "does not say why")
def failed_silently(stage: Stage) -> None:
    stage.commit(*job(done=True, failed=True))
    stage.settle()


@scene("jobs_end", "does not show it")
def failed_and_the_image_is_well(stage: Stage) -> None:
    stage.commit(image(), content(NODE), *job(done=True, failed=True, error="wrong digest"))
    stage.settle()


@scene("jobs_end", "nodes are still to keep")
def failed_and_not_unwound(stage: Stage) -> None:
    stage.commit(image(), content(NODE, failed=True, error="wrong digest"), *job(done=True, failed=True, error="wrong digest"))
    stage.settle()


@scene("jobs_end")
def failed_and_unwound(stage: Stage) -> None:
    stage.commit(image(), content(failed=True, error="wrong digest"), *job(done=True, failed=True, error="wrong digest"))
    stage.settle()


@scene("jobs_end", "is to keep image demo and has it not")
def a_copy_is_missing(stage: Stage) -> None:
    stage.commit(image(), content(NODE), *job(done=True))
    stage.host()
    stage.settle()


@scene("jobs_end", "is kept on 1 nodes, 2 could keep it")
def too_few_copies(stage: Stage) -> None:
    stage.commit(image(), content(NODE), *job(done=True), node(), node(OTHER), session(), session(OTHER))
    stage.host(images=frozenset({DIGEST}))
    stage.settle()


# --- views ------------------------------------------------------------------------------------------------------------------


def _listed(stage: Stage, kind: str, *objects: Any) -> None:
    stage.said += stage.checker.listed(stage.cloud, "c1", kind, objects)


def _shown_vm(**status: Any) -> Any:
    made = vm()[2]
    for field, value in {"state": made.status.STATE_RUNNING, "node": "n1", "say": "running", **status}.items():
        setattr(made.status, field, value)
    return made


@scene("views")
def shown_as_it_is(stage: Stage) -> None:
    stage.commit(vm(), volume(), image(), content(NODE), node(), session(), claims())
    stage.host(guests=guest(), volumes={VOLUME: GIB}, images=frozenset({DIGEST}))
    _listed(stage, "vm", _shown_vm())
    disk, kept, server = volume()[2], image()[2], node()[2]
    disk.status.node = "n1"
    kept.status.state, kept.status.nodes[:] = kept.status.STATE_AVAILABLE, ["n1"]
    server.status.state = server.status.STATE_READY
    for kind, each in (("volume", disk), ("image", kept), ("node", server)):
        _listed(stage, kind, each)


@scene("views", "c1 lists vm .*, there are")
def one_is_not_listed(stage: Stage) -> None:
    stage.commit(vm())
    _listed(stage, "vm")


@scene("views", "c1 lists a vm twice")
def one_is_listed_twice(stage: Stage) -> None:
    stage.commit(vm())
    stage.host(guests=guest())
    _listed(stage, "vm", _shown_vm(), _shown_vm())


@scene("views", "shows another spec of vm i-1")
def an_old_spec_is_shown(stage: Stage) -> None:
    stage.commit(vm(power_generation=2))
    stage.host(guests=guest())
    _listed(stage, "vm", _shown_vm())


@scene("views", "STATE_RUNNING on n1, it runs on")
def said_to_run(stage: Stage) -> None:
    stage.commit(vm())
    stage.host()
    _listed(stage, "vm", _shown_vm())


@scene("views", "says of volume vol1: on no node")
def a_volume_shown_nowhere(stage: Stage) -> None:
    stage.commit(volume())
    stage.host(volumes={VOLUME: GIB})
    _listed(stage, "volume", volume()[2])


@scene("views", "kept on")
def an_image_shown_elsewhere(stage: Stage) -> None:
    stage.commit(image(), content(NODE))
    stage.host(images=frozenset({DIGEST}))
    shown = image()[2]
    shown.status.state = shown.status.STATE_AVAILABLE
    _listed(stage, "image", shown)


@scene("views", "says of node node-1")
def a_node_shown_down(stage: Stage) -> None:
    stage.commit(node(), session())
    stage.host()
    shown = node()[2]
    shown.status.state = shown.status.STATE_DOWN
    _listed(stage, "node", shown)


# --- as_claimed --------------------------------------------------------------------------------------------------------------


@scene("as_claimed")
def it_has_what_was_claimed_for_it(stage: Stage) -> None:
    stage.commit(vm(), placement())
    stage.host(definitions=defined())
    stage.settle()


@scene("as_claimed", "is defined on n1 with 2 CPUs")
def it_has_more_than_was_claimed_for_it(stage: Stage) -> None:
    stage.commit(vm(), placement())
    stage.host(definitions=defined(cpus=2))
    stage.settle()
