"""Scenes for checkers when everything was deleted, networks and images too."""

from __future__ import annotations

from cairn.proto.v1.cluster_pb2 import NameClaim

from tests.sim.stage import DIGEST, SCENES, Stage, claims, node, scene

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
