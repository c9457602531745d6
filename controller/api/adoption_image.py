"""Adopting an image that nodes hold and the store does not know: a new import, of which the bytes are there already.

A node knows an image's id, digest, size and format; its name and architecture are for people to say. Its record and its import
job are made as by CreateImage, under the id it had, so volumes made of it refer to it again; the job makes those that hold it
its keepers (jobs/import_image.py), and has it copied to as many as it asks for.
"""

from __future__ import annotations

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.nouns import DEFAULT_PROJECT_ID
from cairn.controller.jobs.import_image import content_of, put, start
from cairn.controller.model.nodes import node_name
from cairn.controller.model.permits import Caller
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import Unknown
from cairn.proto.v1.image_pb2 import Image


def adopted(view: View, caller: Caller, core: Core, unknown: Unknown, name: str, arch: str) -> Decided[Image]:
    """Decide its record. name, arch: empty for its id, and for what its node runs. Raises Refused."""
    given, node = unknown.desired.image, unknown.node
    if not given.id:
        raise BadState("image", unknown.key, "its node knows its digest alone: import it again, or have it removed")
    now = core.clock.now()
    called = validation.name("name", name) if name else given.id
    image = Image(id=given.id, name=called, project=DEFAULT_PROJECT_ID)
    image.create_time.CopyFrom(timestamp(now))
    image.update_time.CopyFrom(timestamp(now))
    spec = image.spec
    spec.digest, spec.size_bytes, spec.format, spec.arch = (
        given.digest,
        given.size_bytes,
        given.format,
        arch or _arch(view, node),
    )
    validation.image(spec)
    txn = Txn("api").create(kinds.IMAGE, image.id, image)
    resolution.claim(txn, view, caller, nouns.IMAGE, image.project, image.name, image.id)
    txn.merge(start(image, core.ids.new(kinds.JOB.id_prefix), now, adopted=True))
    said = f"image {image.name} was adopted: {node_name(view, node)} holds it"
    return Decided(txn, nouns.IMAGE, image.id, image.name, image.project, events=[("Adopted", said)])


def kept_too(view: View, unknown: Unknown) -> Decided[Image]:
    """Decide that a node keeps an image there is a record of: its keepers may have lost it since. Raises BadState."""
    id = unknown.key.partition("/")[2]
    record = view.record(kinds.IMAGE, id)
    assert record is not None
    image, content = record.message, content_of(view, id)
    if image.HasField("delete_time"):
        raise BadState("image", image.name, f"image {image.name!r} was deleted")
    if content.failed:
        say = f"image {image.name!r} could not be imported ({content.error}): delete it, and adopt it anew"
        raise BadState("image", image.name, say)
    if unknown.node in content.nodes or not view.revision_of(kinds.IMAGE_CONTENT, id):
        # It is told to keep it in a moment, by its import job if that has not begun.
        return Decided(Txn("api").check(kinds.IMAGE, id, record.mod_revision), nouns.IMAGE, id, image.name, image.project)
    content.nodes.append(unknown.node)
    said = f"image {image.name} is kept on {node_name(view, unknown.node)} too, which holds it"
    txn = Txn("api").check(kinds.IMAGE, id, record.mod_revision).merge(put(view, content, [unknown.node]))
    return Decided(txn, nouns.IMAGE, id, image.name, image.project, events=[("Adopted", said)])


def _arch(view: View, node: str) -> str:
    facts = view.get(kinds.NODE_FACTS, node)
    archs = list(facts.hypervisor.archs) if facts is not None else []
    if not archs:
        raise BadState("node", node, "what its guests are of is not known: say the architecture of the image")
    return archs[0]
