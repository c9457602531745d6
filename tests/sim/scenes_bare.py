"""Scenes for checkers when everything was deleted, networks and images too; and for what nobody asked to have removed."""

from __future__ import annotations

from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec, Login
from cairn.proto.v1.binding_pb2 import Binding, BindingSpec
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.user_pb2 import User
from cairn.proto.v1.volume_pb2 import Purge

from tests.sim.stage import (
    DIGEST,
    GIB,
    IMAGE,
    NODE,
    SCENES,
    VM,
    VOLUME,
    Stage,
    claims,
    content,
    defined,
    image,
    node,
    place,
    placement,
    said,
    scene,
    vm,
    volume,
)

__all__ = ["SCENES"]


@scene("orphans")
def nothing_but_the_cloud(stage: Stage) -> None:
    stage.commit(node(), claims(), ("name", "-/node/n1", NameClaim(kind="node", name="n1")))
    stage.host()
    stage.host("node-2", away=True, images=frozenset({DIGEST}))
    stage.bare()


@scene("orphans", "images are left on n1")
def an_image_left(stage: Stage) -> None:
    stage.host(images=frozenset({DIGEST}))
    stage.bare()


@scene("orphans", "halves of images are left on n1")
def half_an_image_left(stage: Stage) -> None:
    stage.host(partials=frozenset({DIGEST}))
    stage.bare()


@scene("orphans", "the name p/vm/web is still taken")
def a_name_left(stage: Stage) -> None:
    stage.commit(("name", "p/vm/web", NameClaim(kind="vm", name="web")))
    stage.bare()


@scene("orphans", "API token tok-1 is of somebody who is gone")
def a_token_of_a_user_who_is_gone(stage: Stage) -> None:
    stage.commit(("api_token", "tok-1", ApiToken(id="tok-1", spec=ApiTokenSpec(user="usr-1"))))
    stage.settle()


@scene("orphans", "API token tok-1 is of somebody who is gone")
def a_token_of_a_provider_that_is_gone(stage: Stage) -> None:
    spec = ApiTokenSpec(user="usr-1", login=Login(provider="idp-1"))
    stage.commit(("user", "usr-1", User(id="usr-1")), ("api_token", "tok-1", ApiToken(id="tok-1", spec=spec)))
    stage.settle()


@scene("orphans", "binding rb-1 is for vm/i-1, which is gone")
def a_binding_for_what_is_gone(stage: Stage) -> None:
    stage.commit(("binding", "rb-1", Binding(id="rb-1", spec=BindingSpec(object="vm/i-1"))))
    stage.settle()


@scene("orphans")
def tokens_and_bindings_of_what_is_there(stage: Stage) -> None:
    stage.commit(("user", "usr-1", User(id="usr-1")), ("api_token", "tok-1", ApiToken(spec=ApiTokenSpec(user="usr-1"))))
    stage.commit(vm(), ("binding", "rb-1", Binding(spec=BindingSpec(object=f"vm/{VM}"))), ("binding", "rb-2", Binding()))
    stage.settle()


# --- destroyed -------------------------------------------------------------------------------------------------------------


def _made(stage: Stage) -> None:
    stage.commit(node(), vm(), volume(vm=VM, delete_with_vm=True), placement(), place(), image(), content(NODE))
    stage.host(definitions=defined(), volumes={VOLUME: GIB}, images=frozenset({DIGEST}), by="n1")


@scene("destroyed")
def what_users_deleted_goes(stage: Stage) -> None:
    _made(stage)
    stage.commit(vm(gone=True))
    stage.host(volumes={VOLUME: GIB}, images=frozenset({DIGEST}), by="n1")
    stage.commit(("purge", VM, Purge(id=VM)), ("image", IMAGE, None))
    stage.host(by="n1")


@scene("destroyed")
def by_hand_is_no_agent(stage: Stage) -> None:
    _made(stage)
    stage.host()


@scene("destroyed", "removed VM i-1, which is to be there")
def a_guest_removed(stage: Stage) -> None:
    _made(stage)
    stage.host(volumes={VOLUME: GIB}, images=frozenset({DIGEST}), by="n1")


@scene("destroyed", "erased volume vol-1, which is to be there")
def a_volume_erased(stage: Stage) -> None:
    _made(stage)
    stage.host(definitions=defined(), images=frozenset({DIGEST}), by="n1")


@scene("destroyed", "removed image sha256:1, which is kept there")
def an_image_removed(stage: Stage) -> None:
    _made(stage)
    stage.commit(said(f"image/{IMAGE}"))
    stage.host(definitions=defined(), volumes={VOLUME: GIB}, by="n1")


@scene("destroyed")
def the_bytes_of_an_image_it_has_not_heard_of_yet(stage: Stage) -> None:
    """They were another's, which was deleted."""
    _made(stage)
    stage.host(definitions=defined(), volumes={VOLUME: GIB}, by="n1")
