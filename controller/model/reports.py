"""What nodes said last about the objects they hold."""

from __future__ import annotations

from cairn.controller.store.base import View
from cairn.proto import kinds
from cairn.proto.v1.agent_pb2 import ImageReport, Report, VolumeReport


def report(view: View, node: str, key: str) -> Report | None:
    """Return what a node last reported about an object ("vm/i-..."), or None."""
    observed = view.get(kinds.OBSERVED, f"{node}/{key}")
    return observed.report if observed is not None else None


def image_report(view: View, node: str, image: str) -> ImageReport | None:
    """Return what a node last said about its copy of an image, or None."""
    found = report(view, node, f"image/{image}")
    return found.image if found is not None else None


def volume_known_bytes(view: View, volume: str) -> int:
    """Return what a volume has at least: the most any node said it had, as volumes only grow. 0: none has said."""
    seen = (view.get(kinds.OBSERVED, id) for id in view.by(kinds.OBSERVED, "key", f"volume/{volume}"))
    reports = (each.report.volume for each in seen if each is not None)
    return max((each.size_bytes for each in reports if each.state == VolumeReport.STATE_READY), default=0)


def volume_ready_report(view: View, volume: str) -> Report | None:
    """Return what some node said of a volume when it was ready, whoever administers it now; None: none has."""
    seen = (view.get(kinds.OBSERVED, id) for id in view.by(kinds.OBSERVED, "key", f"volume/{volume}"))
    reports = (each.report for each in seen if each is not None)
    return next((each for each in reports if each.volume.state == VolumeReport.STATE_READY), None)
