"""Claims of names: each is given back once its holder has it no more, also when it could not be read at that moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cairn.controller.model.damage import findings
from cairn.controller.model.names import CLUSTER_WIDE, LOGIN, NODE_INDEX, index_name, is_held, login_name
from cairn.controller.reconcilers.garbage import Garbage
from cairn.proto import kinds
from cairn.proto.seams import timestamp
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.user_pb2 import User, UserLogin
from cairn.proto.v1.vpc_pb2 import Vpc

from tests.unit.cloud_kit import Cloud
from tests.unit.test_unreadable import damage

ADA = UserLogin(provider="idp-1", subject="ada@corp")
Change = Callable[[Any], None]


def claimed(cloud: Cloud, kind: str, name: str, id: str, project: str = CLUSTER_WIDE) -> str:
    key = f"{project}/{kind}/{name}"
    cloud.put(kinds.NAME, key, NameClaim(kind=kind, project=project, name=name, id=id))
    return key


def cloud_with_claims() -> tuple[Cloud, list[str]]:
    cloud = Cloud()
    node = cloud.node("n1")
    record = cloud.view.get(kinds.NODE, node)
    assert record is not None
    vm = cloud.vm("web", subnet=cloud.subnet("blue", cloud.vpc("v")))
    disk = cloud.view.get(kinds.VM, vm).spec.root_volume  # type: ignore[union-attr]
    volume, image = cloud.view.get(kinds.VOLUME, disk), Image(id="img-1", name="debian", project="p")
    assert volume is not None
    image.spec.sharing.projects.append("q")
    cloud.put(kinds.IMAGE, image.id, image)
    user = User(id="usr-1", name="ada")
    user.spec.login.CopyFrom(ADA)
    cloud.put(kinds.USER, user.id, user)
    return cloud, [
        claimed(cloud, "vm", "web", vm, "p"),
        claimed(cloud, "volume", volume.name, disk, "p"),
        claimed(cloud, "image", "debian", image.id, "p"),
        claimed(cloud, "image", "debian", image.id, "q"),
        claimed(cloud, "user", "ada", user.id),
        claimed(cloud, LOGIN, login_name(ADA), user.id),
        claimed(cloud, "node", "n1", node),
        claimed(cloud, NODE_INDEX, index_name(record.spec.index), node),
        claimed(cloud, "to-come", "x", "new-1"),
    ]


def change(cloud: Cloud, kind: Any, id: str, amend: Change) -> None:
    message = type(cloud.view.get(kind, id))()
    message.CopyFrom(cloud.view.get(kind, id))
    amend(message)
    cloud.put(kind, id, message)


def called(name: str) -> Change:
    return lambda message: setattr(message, "name", name)


def test_what_is_held_stays_and_is_nothing_to_mend() -> None:
    cloud, keys = cloud_with_claims()
    # Its deletion has begun, and may be given up again.
    vpc = cloud.vpc("leaving")
    change(cloud, kinds.VPC, vpc, lambda vpc: vpc.MergeFrom(Vpc(project="p", delete_time=timestamp(cloud.now))))
    keys.append(claimed(cloud, "vpc", "leaving", vpc, "p"))
    cloud.settle([Garbage()])
    assert sorted(cloud.view.ids(kinds.NAME)) == sorted(keys)
    assert [each for each in findings(cloud.view) if each is not None and each.check == "name"] == []


LOST: dict[str, tuple[Any, Change, int]] = {
    "renamed": (kinds.VM, called("shop"), 0),
    "deleted": (kinds.VM, lambda vm: vm.delete_time.CopyFrom(timestamp(Cloud().now)), 0),
    "unshared": (kinds.IMAGE, lambda image: image.spec.ClearField("sharing"), 3),
    "linked to another": (kinds.USER, lambda user: setattr(user.spec.login, "subject", "eve"), 5),
    "unlinked": (kinds.USER, lambda user: user.spec.ClearField("login"), 5),
    "another number": (kinds.NODE, lambda node: setattr(node.spec, "index", 4000), 7),
}


@pytest.mark.parametrize("how", LOST)
def test_what_its_holder_has_no_more_is_found_and_given_back(how: str) -> None:
    cloud, keys = cloud_with_claims()
    kind, amend, number = LOST[how]
    claim = cloud.view.get(kinds.NAME, keys[number])
    assert claim is not None
    change(cloud, kind, claim.id, amend)
    assert not is_held(cloud.view, claim)
    found = [each.object for each in findings(cloud.view) if each is not None and each.check == "name"]
    assert f"name/{keys[number]}" in found
    outcome = cloud.decide(Garbage(), f"name/{keys[number]}")
    assert outcome.txn is not None
    assert kinds.NAME.key(keys[number]) in outcome.txn.deletes
    assert kind.key(claim.id) in outcome.txn.checks, "it may be given the name at this moment"


def test_a_disk_that_is_deleted_with_its_vm_has_no_name() -> None:
    cloud, keys = cloud_with_claims()
    vm = cloud.view.get(kinds.NAME, keys[0]).id  # type: ignore[union-attr]
    change(cloud, kinds.VM, vm, lambda vm: vm.delete_time.CopyFrom(timestamp(cloud.now)))
    outcome = cloud.decide(Garbage(), f"name/{keys[1]}")
    assert outcome.txn is not None
    assert kinds.VM.key(vm) in outcome.txn.checks


@pytest.mark.parametrize("kind", [kinds.USER, kinds.NODE, kinds.VM])
def test_a_name_whose_holder_cannot_be_read_stays(kind: Any) -> None:
    cloud, keys = cloud_with_claims()
    (id, *_) = cloud.view.ids(kind)
    damage(cloud, kind, id)
    cloud.settle([Garbage()])
    assert sorted(cloud.view.ids(kinds.NAME)) == sorted(keys)
