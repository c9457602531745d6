"""What to do so that a node holds the images and volumes it must: a pure diff, in an order that can be applied.

Images come before the volumes that are children of them, and go after. An image is held by its digest: two image records
with the same bytes are one file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cairn.proto.v1.agent_pb2 import DesiredImage, DesiredVolume
from cairn.storage.base import Image, Volume


@dataclass(frozen=True, slots=True)
class FetchImage:
    """Bytes to get: from a source, or by waiting for the upload when it names none."""

    image: DesiredImage


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """A volume to make."""

    volume: DesiredVolume


@dataclass(frozen=True, slots=True)
class GrowVolume:
    """A volume that is smaller than wanted, in bytes."""

    id: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """A volume to remove."""

    id: str


@dataclass(frozen=True, slots=True)
class DeleteImage:
    """An image that must not be here any more."""

    digest: str


Action = FetchImage | CreateVolume | GrowVolume | DeleteVolume | DeleteImage


def plan(
    desired_images: Iterable[DesiredImage],
    desired_volumes: Iterable[DesiredVolume],
    images: Iterable[Image],
    volumes: Iterable[Volume],
) -> list[Action]:
    """Return the actions; empty when the world matches.

    A volume is deleted only when it is desired `absent`: one that nobody mentions holds user data and stays. A volume whose
    image is not here yet waits: its creation comes with the plan made after the fetch. An image, too, is deleted only when it
    is desired `absent`, and no other image or volume needs its bytes. A damaged one is fetched anew.

    One that is another node's to make, grow and delete as well (it has a generation) is deleted whether it is seen or not: the
    pool remembers more of it than what is seen, such as a copy that is not whole, or who may still make it.
    """
    wanted = sorted(desired_volumes, key=lambda volume: volume.id)
    held = {volume.id: volume for volume in volumes}
    there = {image.digest: image.is_sound for image in images}
    digests = {digest for digest, is_sound in there.items() if is_sound}
    listed = sorted(desired_images, key=lambda image: image.id, reverse=True)
    fetch = {image.digest: image for image in listed if not image.absent}
    unwanted = {image.digest for image in listed if image.absent}
    actions: list[Action] = [FetchImage(fetch[digest]) for digest in sorted(fetch) if digest not in digests]
    gone = [volume.id for volume in wanted if volume.absent and (volume.id in held or volume.generation)]
    actions += [DeleteVolume(id) for id in gone]
    for volume in wanted:
        if volume.absent:
            continue
        found = held.get(volume.id)
        if found is None and (not volume.image_digest or volume.image_digest in digests):
            actions.append(CreateVolume(volume))
        elif found is not None and found.size_bytes < volume.size_bytes:
            actions.append(GrowVolume(volume.id, volume.size_bytes))
    needed = {held[id].image_digest for id in held if id not in gone}
    needed |= {volume.image_digest for volume in wanted if not volume.absent}
    actions += [DeleteImage(digest) for digest in sorted((there.keys() & unwanted) - fetch.keys() - needed)]
    return actions
