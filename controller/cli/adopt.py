"""cairn cluster adopt: what nodes know better than the records, listed, and made what the records say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.output import Column

# In that order: a VM is made of an image, and brings its volumes.
_ADOPTABLE: Final = ("image", "vm", "volume")


def _what(object: Any) -> str:
    if object.removed:
        return "removed since"
    if object.doubted:
        return "doubted"
    return "told otherwise since" if object.contested else "unknown"


COLUMNS: Final = (
    Column("NODE", lambda object: object.node_name),
    Column("KEY", lambda object: object.key),
    Column("NAME", lambda object: object.name),
    Column("WHAT", _what),
    Column("SAYS", lambda object: object.say),
    Column("SINCE", lambda object: object.since_time),
)


def add_verbs(group: NounGroup) -> None:
    """Add adopt to `cairn cluster`."""
    group.verb("adopt")(adopt)


@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--all", "everything", is_flag=True, help="Adopt all that is listed, as far as nothing stands in its way.")
@click.option("--node", metavar="NAME", default="", help="Only of this node.")
async def adopt(session: Session, keys: Sequence[str], everything: bool, node: str) -> None:
    """List what nodes know better than the records; with KEYs or --all: make it what the records say.

    After a restore these are the images, VMs and volumes made since the backup (adopt them, or remove them with `cairn node
    forget`), removed since (adopting deletes them here too), and told otherwise since (started, stopped, resized). To
    overrule a node instead, say what you want: `cairn vm start`, `stop`, `resize`, `delete`. Guests that are doubted are
    managed by their node as before, since the records of so many were lost at once.
    """
    found = await listed(session, node)
    if not keys and not everything:
        session.output.list(COLUMNS, found, empty="nodes hold nothing that the records do not know")
        return
    chosen = found if everything else [named(found, key) for key in keys]
    failures = 0
    # What was removed gives names, addresses and room to what was made. A VM brings its volumes.
    for each in sorted(chosen, key=lambda each: (_ADOPTABLE.index(each.key.partition("/")[0]), not each.removed, each.key)):
        try:
            await _adopt(session, each)
        except Failure as failure:
            if not everything:
                raise
            failures += not (each.key.startswith("volume/") and failure.status == "NOT_FOUND")
            session.output.say(f"{each.key} on {each.node_name}: {failure.say}")
    if failures:
        say = f"{failures} could not be adopted"
        raise Failure(say, next="see above; look again with `cairn cluster adopt`, or remove with `cairn node forget`")


def named(found: Sequence[Any], key: str) -> Any:
    """Return the object of a key, id or name. Failure when there is none, or several."""
    matching = [each for each in found if key in (each.key, each.key.partition("/")[2], each.name)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise Failure(f"no node knows {key} better than the records", next="cairn cluster adopt")
    nodes = ", ".join(each.node_name for each in matching)
    raise Failure(f"{key} is on several nodes: {nodes}", next="say which with --node", usage=True)


async def listed(session: Session, node: str = "") -> list[Any]:
    """Return what nodes, or one of them by name or id, know better than the records."""
    from cairn.controller.cli.client import Patience
    from cairn.proto.v1.cluster_pb2 import ListUnknownRequest
    from grpc.aio import AioRpcError

    patience = Patience(session)
    while True:
        found: list[Any] = []
        try:
            async for answer in session.stub("cluster").ListUnknown(ListUnknownRequest(node=node)):
                found += answer.objects
        except AioRpcError as error:
            await patience.wait_after(error)
        else:
            # A controller of an older release tells of all nodes.
            return [each for each in found if node in ("", each.node_name, each.node)]


async def _adopt(session: Session, object: Any) -> None:
    """Adopt one. Failure when something stands in its way."""
    from cairn.proto.v1.cluster_pb2 import AdoptImageRequest, AdoptVmRequest, AdoptVolumeRequest

    kind, _, id = object.key.partition("/")
    requests: dict[str, Any] = {"image": AdoptImageRequest, "vm": AdoptVmRequest, "volume": AdoptVolumeRequest}
    adopted = await session.call("cluster", requests[kind](node=object.node, id=id))
    session.output.say(
        f"{kind} {adopted.name} ({id}): {'deleted, as on' if object.removed else 'adopted from'} {object.node_name}"
    )
