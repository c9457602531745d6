"""Import an image: choose the nodes that keep a copy, wait for its bytes on one of them, and for the others to pull it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from cairn.controller.jobs.machine import State, Step
from cairn.controller.model.facts import pools_of
from cairn.controller.model.happening import EventSpec
from cairn.controller.model.jobs import deadline_of, status_of
from cairn.controller.model.nodes import connected, hash_of, node_name
from cairn.controller.model.reports import image_report
from cairn.controller.model.restored import holders
from cairn.controller.store.base import Txn, View
from cairn.controller.words import names, size
from cairn.proto import kinds
from cairn.proto.ids import LOCAL_POOL
from cairn.proto.kinds import AnyKind
from cairn.proto.seams import timestamp
from cairn.proto.v1.agent_pb2 import ImageReport
from cairn.proto.v1.image_pb2 import Image, ImageContent
from cairn.proto.v1.job_pb2 import Job

REPLICAS: Final = 2
DEADLINE: Final = timedelta(hours=1)
# How long a chosen node may be away before another is chosen; longer than agents take to find another controller.
LOST: Final = timedelta(seconds=30)


class ImportImage:
    """The machine. Each state is a method of that name."""

    kind = "import_image"
    first = "choose"
    stop = "unwind"
    states: Mapping[str, State] = {
        # Nodes with room become keepers (ImageContent.nodes); each is then told to hold the image, and waits for its bytes.
        "choose": State(goes=("upload",)),
        # One keeper receives the bytes and verifies them. All keepers lost: choose again. Not an image, wrong digest: unwind.
        "upload": State(goes=("replicate", "choose")),
        # The other keepers pull it. It is usable already; at the deadline the copies there are have to do.
        "replicate": State(goes=("done",), stoppable=False),
        # No node is to hold it any more; what is left of it there is removed by the nodes as they connect.
        "unwind": State(goes=("failed",), stoppable=False),
    }
    reads: tuple[AnyKind, ...] = (
        kinds.IMAGE, kinds.IMAGE_CONTENT, kinds.OBSERVED, kinds.UNKNOWN, kinds.NODE, kinds.NODE_SESSION, kinds.NODE_FACTS,
        kinds.NODE_POOLS,
    )  # fmt: skip
    writes: tuple[AnyKind, ...] = (kinds.IMAGE_CONTENT,)

    def targets(self, view: View, kind: AnyKind, id: str) -> Iterable[str]:
        """The image; for nodes, every image being imported."""
        if kind in (kinds.IMAGE, kinds.IMAGE_CONTENT):
            return (id,)
        if kind in (kinds.OBSERVED, kinds.UNKNOWN):
            _, found, image = id.partition("/image/")
            return (image,) if found else ()
        jobs = [job for job in view.all(kinds.JOB) if job.spec.kind == self.kind]
        return [job.spec.target for job in jobs if not status_of(view, job.id).done]

    def choose(self, view: View, job: Job, now: datetime) -> Step:  # noqa: ARG002 - one shape for all steps
        """Choose the keepers."""
        image = view.get(kinds.IMAGE, job.spec.target)
        if image is None:
            return Step("", fail="the image was deleted")
        wanted = image.spec.replicas or REPLICAS
        # Of one that was adopted all that have it: nobody else could give it to others.
        there = _holders(view, image.id)
        more = [node for node in candidates(view, image) if node not in there]
        keepers = there + more[: max(0, wanted - len(there))]
        if not keepers:
            return Step(f"waits for a connected node with {size(image.spec.size_bytes)} of disk free")
        content = content_of(view, image.id)
        del content.nodes[:]
        content.nodes.extend(keepers)
        say = f"waits for its bytes, to be kept on {names([node_name(view, node) for node in keepers])}"
        return Step(say, next="upload", percent=5, txn=put(view, content, keepers), data={})

    def upload(self, view: View, job: Job, now: datetime) -> Step:
        """Wait for a keeper to hold it."""
        image = view.get(kinds.IMAGE, job.spec.target)
        if image is None:
            return Step("", fail="the image was deleted")
        content = content_of(view, image.id)
        if more := [node for node in _holders(view, image.id) if node not in content.nodes]:
            # At a backup it was under way, and others were chosen since: they would be told to remove it if it failed.
            return Step(f"{names([node_name(view, node) for node in more])} has it already", next="choose", data={})
        reports = {node: seen for node in content.nodes if (seen := image_report(view, node, image.id)) is not None}
        for node, seen in reports.items():
            # Of one it was told to remove and cannot yet, an agent of before says no more than that.
            if seen.state == ImageReport.STATE_READY and seen.virtual_size_bytes:
                content.virtual_size_bytes, content.format = seen.virtual_size_bytes, seen.format
                say = f"verified on {node_name(view, node)}"
                return Step(say, next="replicate", percent=60, txn=put(view, content), data={})
        bad = {node: seen for node, seen in reports.items() if seen.state == ImageReport.STATE_FAILED}
        if bad and (job.spec.HasField("deadline") or len(bad) == len(content.nodes)):
            # Of one that was adopted another node may have sound bytes: those of a failed import are removed.
            node, seen = next(iter(bad.items()))
            return Step("", fail=f"{node_name(view, node)}: {seen.error or seen.say}")
        where = names([node_name(view, node) for node in content.nodes])
        if not any(connected(view, node) for node in content.nodes):
            return _lost(job, now, f"waits for {where}, which does not answer")
        held = max((seen.held_bytes for seen in reports.values()), default=0)
        share = min(held, image.spec.size_bytes) * 100 // max(image.spec.size_bytes, 1)
        say = f"receiving its bytes ({share} %)" if held else f"waits for its bytes, to be kept on {where}"
        return Step(say, percent=5 + share // 2, data={})

    def replicate(self, view: View, job: Job, now: datetime) -> Step:
        """Wait for the other keepers."""
        image = view.get(kinds.IMAGE, job.spec.target)
        if image is None:
            return Step("the image was deleted", next="done")
        content = content_of(view, image.id)
        seen = {node: image_report(view, node, image.id) for node in content.nodes}
        there = [node for node, report in seen.items() if report is not None and report.state == ImageReport.STATE_READY]
        missing = [node for node in content.nodes if node not in there and view.get(kinds.NODE, node) is not None]
        deadline = deadline_of(view, job)
        late = job.spec.cancel_requested or (deadline is not None and now >= deadline)
        if not missing or late:
            say = f"image {image.name} is kept on {names([node_name(view, node) for node in there])}"
            if missing:
                say += f"; {names([node_name(view, node) for node in missing])} did not get a copy in time"
            event = EventSpec(image.id, image.name, image.project, "ImageAvailable", say, warning=bool(missing))
            return Step(say, next="done", percent=100, events=(event,), found=_found(image, content))
        first = seen[missing[0]]
        why = f" ({first.error})" if first is not None and first.error else ""
        away = "" if connected(view, missing[0]) else ", which does not answer"
        return Step(f"usable; waits for a copy on {node_name(view, missing[0])}{why}{away}", percent=60)

    def unwind(self, view: View, job: Job, now: datetime) -> Step:  # noqa: ARG002 - one shape for all steps
        """Let go of what was kept."""
        image = view.get(kinds.IMAGE, job.spec.target)
        if image is None:
            return Step(f"failed: {job.status.error}", next="failed")
        content = content_of(view, image.id)
        content.failed, content.error = True, job.status.error
        del content.nodes[:]
        say = f"image {image.name} could not be imported: {job.status.error}"
        event = EventSpec(image.id, image.name, image.project, "ImageFailed", say, warning=True)
        return Step(say, next="failed", txn=put(view, content), events=(event,))


def _found(image: Image, content: ImageContent) -> tuple[tuple[str, str, str], ...]:
    """Return what the audit keeps of the bytes that were verified."""
    told = {"spec.digest": image.spec.digest, "status.virtual_size_bytes": str(content.virtual_size_bytes)}
    return tuple((f"{kinds.IMAGE.name}/{image.id}", field, value) for field, value in told.items())


def start(image: Image, job: str, now: datetime, *, adopted: bool = False) -> Txn:
    """Return the transaction that wishes for the import of an image, to be merged with its creation.

    adopted: nodes have its bytes, which nobody else may have. Time, by whoever's clock, is no reason to give them up.
    """
    record = Job(id=job, name=job, project=image.project, create_time=timestamp(now), update_time=timestamp(now))
    record.spec.kind, record.spec.target = ImportImage.kind, image.id
    record.spec.deadline.CopyFrom(timestamp(now + DEADLINE))
    if adopted:
        record.spec.ClearField("deadline")
    return Txn("api").create(kinds.JOB, job, record)


def candidates(view: View, image: Image) -> list[str]:
    """Return connected nodes with room for an image: first those that hold it, then by free space; none that leave."""
    found: list[tuple[bool, int, int, str]] = []
    for node in view.all(kinds.NODE):
        facts = view.get(kinds.NODE_FACTS, node.id)
        if facts is None or node.spec.cordoned or node.HasField("delete_time") or not connected(view, node.id):
            continue
        free_bytes = sum(pool.free_bytes for pool in pools_of(view, node.id) if pool.type == LOCAL_POOL)
        report = image_report(view, node.id, image.id)
        holds = report is not None and report.state == ImageReport.STATE_READY
        if holds or free_bytes > image.spec.size_bytes:
            found.append((not holds, -free_bytes, hash_of(f"{image.id}{node.id}"), node.id))
    return [node for _, _, _, node in sorted(found)]


def _holders(view: View, image: str) -> list[str]:
    """Return the nodes that have an image which they were not told to keep."""
    return [node for node in holders(view, f"{kinds.IMAGE.name}/{image}") if view.get(kinds.NODE, node) is not None]


def _lost(job: Job, now: datetime, say: str) -> Step:
    """All keepers are away: be patient for a while, then choose others."""
    since = job.status.data.get("lost_time", "")
    gone = now - datetime.fromisoformat(since) if since else timedelta()
    if gone >= LOST:
        return Step(f"{say} any more: chooses others", next="choose", data={})
    data = {"lost_time": since or now.isoformat()}
    return Step(say, data=data, again_after_s=(LOST - gone).total_seconds())


def content_of(view: View, image: str) -> ImageContent:
    """Return a copy of what is stored about an image's content, to be changed."""
    content = ImageContent(image=image)
    stored = view.get(kinds.IMAGE_CONTENT, image)
    if stored is not None:
        content.CopyFrom(stored)
    return content


def put(view: View, content: ImageContent, chosen: Sequence[str] = ()) -> Txn:
    """Write the content, unless the image is deleted meanwhile, or a node that was just chosen is removed."""
    txn = Txn("jobs")
    for node in chosen:
        txn.check(kinds.NODE, node, view.revision_of(kinds.NODE, node))
    txn.check(kinds.IMAGE, content.image, view.revision_of(kinds.IMAGE, content.image))
    revision = view.revision_of(kinds.IMAGE_CONTENT, content.image)
    return txn.check(kinds.IMAGE_CONTENT, content.image, revision).put(kinds.IMAGE_CONTENT, content.image, content)
