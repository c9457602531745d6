"""Every job ends. One that failed says why, and what it worked on says so too; an image whose import went well can be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cairn.proto.v1.job_pb2 import JobStatus

from tests.sim.asked import Asked
from tests.sim.checkers.base import Checker
from tests.sim.cloud import Cloud, Commit

# ImageSpec's comment.
REPLICAS = 2


class JobsEnd(Checker):
    """Looks at the jobs at rest, and at what goes."""

    def committed(self, cloud: Cloud, commit: Commit) -> Iterator[str]:
        """A job and its state go together."""
        for id in [change.id for change in commit.changes if change.kind in ("job", "job_state")]:
            if cloud.get("job", id) is None and cloud.get("job_state", id) is not None:
                yield f"job {id} is gone, and its state is left"

    def settled(self, cloud: Cloud, asked: Asked) -> Iterator[str]:
        """None is under way. An import whose bytes nobody sends waits for them, until its deadline."""
        for job in cloud.all("job").values():
            image, content = cloud.get("image", job.spec.target), cloud.get("image_content", job.spec.target)
            status = cloud.get("job_state", job.id) or JobStatus()
            if not status.done:
                if not _awaits_bytes(cloud, content):
                    yield f"job {job.id} has not ended: {status.state}, {status.say}"
            elif status.failed:
                if not status.error:
                    yield f"job {job.id} failed and does not say why"
                if image is not None and (content is None or not content.failed or not content.error):
                    yield f"job {job.id} failed ({status.error}) and image {image.name} does not show it"
                if content is not None and content.nodes:
                    yield f"job {job.id} failed, and {len(content.nodes)} nodes are still to keep what it worked on"
            elif image is not None:
                yield from _usable(cloud, image, content)


def _awaits_bytes(cloud: Cloud, content: Any) -> bool:
    if content is None or content.virtual_size_bytes or content.failed or not content.nodes:
        return False
    image = cloud.get("image", content.image)
    return image is not None and not any(image.spec.digest in host.images for host in cloud.hosts.values())


def _usable(cloud: Cloud, image: Any, content: Any) -> Iterator[str]:
    if content is None or content.failed or not content.virtual_size_bytes:
        yield f"the import of {image.name} is done, and nobody knows its size"
        return
    could = [
        id for id, node in cloud.all("node").items() if cloud.get("node_session", id) is not None and not node.spec.cordoned
    ]
    if len(content.nodes) < min(image.spec.replicas or REPLICAS, len({*could, *content.nodes})):
        yield f"{image.name} is kept on {len(content.nodes)} nodes, {len(could)} could keep it"
    for node in content.nodes:
        if node in cloud.hosts and not cloud.hosts[node].away and image.spec.digest not in cloud.hosts[node].images:
            yield f"{cloud.name_of(node)} is to keep image {image.name} and has it not"
