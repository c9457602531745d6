"""Every image is kept on as many nodes as it asks for, none of them gone; and not only on nodes that are to leave.

The import chose its keepers once (import_image.py); this looks after them when the job has ended. Keys are ids of images.

    a keeper was removed                        it is no keeper any more
    fewer keepers than asked for                choose more, of connected nodes with room
    all of them cordoned                        choose one that is not: so a node that was cordoned to leave is not the last

More copies than asked for do no harm and stay. A keeper that does not answer stays one: it may come back with its copy.
Rejected: moving copies when a node is removed, in that transaction (an image's bytes take longer than an answer may).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from cairn.controller.jobs.import_image import REPLICAS, candidates, content_of, put
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.jobs import under_way
from cairn.controller.model.nodes import node_name
from cairn.controller.model.reports import image_report
from cairn.controller.reconcilers.base import NOTHING, Outcome
from cairn.controller.store.base import View
from cairn.controller.words import names
from cairn.proto import kinds
from cairn.proto.kinds import AnyKind
from cairn.proto.v1.agent_pb2 import ImageReport

# Look again for a node with room.
AGAIN_S: Final = 30.0


class Keepers:
    """See the module."""

    prefix = kinds.IMAGE.id_prefix
    reads: tuple[AnyKind, ...] = (kinds.IMAGE, kinds.IMAGE_CONTENT, kinds.JOB, kinds.JOB_STATE, kinds.NODE)
    writes: tuple[AnyKind, ...] = (kinds.IMAGE_CONTENT,)

    def keys(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """The image; of a node, those it keeps."""
        if kind is kinds.NODE:
            return view.by(kinds.IMAGE_CONTENT, "node", id)
        if kind in (kinds.JOB, kinds.JOB_STATE):
            job = view.get(kinds.JOB, id)
            return (job.spec.target,) if job is not None and view.get(kinds.IMAGE, job.spec.target) is not None else ()
        return (id,)

    def all_keys(self, view: View) -> Iterable[str]:
        """All images whose keepers were chosen."""
        return list(view.ids(kinds.IMAGE_CONTENT))

    def reconcile(self, view: View, key: str, now: datetime) -> Outcome:  # noqa: ARG002 - one shape for all
        """Look at one image."""
        image, content = view.get(kinds.IMAGE, key), content_of(view, key)
        if image is None or under_way(view, key) or content.failed or not content.virtual_size_bytes:
            return NOTHING
        there = [node for node in content.nodes if view.get(kinds.NODE, node) is not None]
        wanted = (image.spec.replicas or REPLICAS) - len(there)
        if all(_leaves(view, node) for node in there):
            wanted = max(wanted, 1)
        fit = [node for node in candidates(view, image) if node not in there] if wanted > 0 else []
        chosen = fit[: max(wanted, 0)]
        again_after_s = AGAIN_S if len(chosen) < wanted else None
        kept = [*there, *chosen]
        where = names([node_name(view, node) for node in kept]) if kept else "no node"
        if kept == list(content.nodes):
            return Outcome(None, f"kept on {where}", again_after_s)
        del content.nodes[:]
        content.nodes.extend(kept)
        said = EventSpec(image.id, image.name, image.project, "KeepersChanged", f"image {image.name} is kept on {where}")
        return Outcome(put(view, content, chosen), said.message, again_after_s, (said,))


def _leaves(view: View, node: str) -> bool:
    record = view.get(kinds.NODE, node)
    return record is None or record.spec.cordoned or record.HasField("delete_time")


def lone(view: View, node: str) -> list[str]:
    """Return the images that would be lost with a node: it is to keep them, and no keeper that stays is ready with a copy.

    A node that was cordoned counts as staying until it is being removed: of two nodes removed at once, the one marked later
    sees the other's mark. A copy a volume needs does not count: it goes with the volume.
    """
    return [
        id
        for id in view.by(kinds.IMAGE_CONTENT, "node", node)
        if view.get(kinds.IMAGE, id) is not None
        and not any(other != node and _ready(view, other, id) for other in content_of(view, id).nodes)
    ]


def _ready(view: View, node: str, image: str) -> bool:
    record, report = view.get(kinds.NODE, node), image_report(view, node, image)
    stays = record is not None and not record.HasField("delete_time")
    return stays and report is not None and report.state == ImageReport.STATE_READY
