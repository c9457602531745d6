"""The storage diff: what is missing is made, what is wanted stays, and applying it leaves nothing to do."""

from __future__ import annotations

from cairn.proto.v1.agent_pb2 import DesiredImage, DesiredVolume
from cairn.proto.v1.image_pb2 import ImageFormat
from cairn.storage.base import Image, Volume
from cairn.storage.plan import CreateVolume, DeleteImage, DeleteVolume, FetchImage, GrowVolume, plan
from hypothesis import given
from hypothesis import strategies as st

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def image(digest: str) -> Image:
    return Image(digest, 100, 1024, ImageFormat.IMAGE_FORMAT_RAW)


def test_image_first_then_volume() -> None:
    wanted = DesiredImage(id="img-00000001", digest=A)
    child = DesiredVolume(id="vol-00000001", size_bytes=2048, image_digest=A)
    assert plan([wanted], [child], [], []) == [FetchImage(wanted)]
    assert plan([wanted], [child], [image(A)], []) == [CreateVolume(child)]


def test_grow_delete_and_forget_the_image() -> None:
    kept = DesiredVolume(id="vol-00000001", size_bytes=4096)
    gone = DesiredVolume(id="vol-00000002", absent=True)
    held = [Volume("vol-00000001", 2048, 10), Volume("vol-00000002", 2048, 10, A)]
    unwanted = [DesiredImage(id="img-00000001", digest=A, absent=True), DesiredImage(id="img-00000002", digest=B, absent=True)]
    assert plan([], [kept, gone], [image(A), image(B)], held) == [
        DeleteVolume("vol-00000002"),
        GrowVolume("vol-00000001", 4096),
    ], "nobody said that the images be absent"
    actions = plan(unwanted, [kept, gone], [image(A), image(B)], held)
    assert actions == [DeleteVolume("vol-00000002"), GrowVolume("vol-00000001", 4096), DeleteImage(A), DeleteImage(B)]


def test_user_data_nobody_mentions_stays_and_so_does_its_image() -> None:
    assert plan([], [], [image(A)], [Volume("vol-00000001", 2048, 10, A)]) == []


def test_two_records_with_the_same_bytes_are_fetched_once() -> None:
    first, second = DesiredImage(id="img-00000001", digest=A), DesiredImage(id="img-00000002", digest=A)
    assert plan([second, first], [], [], []) == [FetchImage(first)]


def test_a_damaged_image_is_fetched_anew_and_nothing_is_made_of_it() -> None:
    damaged = Image(A, 100, 0, ImageFormat.IMAGE_FORMAT_UNSPECIFIED)
    wanted, child = DesiredImage(id="img-00000001", digest=A), DesiredVolume(id="vol-00000001", size_bytes=1, image_digest=A)
    assert plan([wanted], [child], [damaged], []) == [FetchImage(wanted)]
    assert plan([DesiredImage(id="img-00000001", digest=A, absent=True)], [], [damaged], []) == [DeleteImage(A)]


digests = st.sampled_from([A, B, ""])
ids = st.sampled_from([f"vol-0000000{n}" for n in range(4)])
desired_volumes = st.dictionaries(ids, st.tuples(st.booleans(), st.integers(1, 5), digests)).map(
    lambda found: [DesiredVolume(id=id, absent=a, size_bytes=s, image_digest=d) for id, (a, s, d) in found.items()]
)
held_volumes = st.dictionaries(ids, st.tuples(st.integers(1, 5), digests)).map(
    lambda found: [Volume(id, size, 0, digest) for id, (size, digest) in found.items()]
)


@given(desired_volumes, held_volumes, st.sets(digests.filter(bool)), st.sets(digests.filter(bool)))
def test_plan_of_the_applied_plan_is_empty(desired, volumes, wanted_digests, held_digests) -> None:
    wanted = [DesiredImage(id=f"img-{digest[-8:]}", digest=digest) for digest in wanted_digests]
    disks = {volume.id: volume for volume in volumes}
    images = set(held_digests) | {volume.image_digest for volume in volumes if volume.image_digest}
    # A controller always names the image of a volume it wants.
    wanted += [DesiredImage(id="img-x", digest=v.image_digest) for v in desired if v.image_digest and not v.absent]
    for _ in range(2):
        for action in plan(wanted, desired, [image(digest) for digest in images], disks.values()):
            match action:
                case FetchImage(found):
                    images.add(found.digest)
                case CreateVolume(found):
                    assert not found.image_digest or found.image_digest in images
                    disks[found.id] = Volume(found.id, found.size_bytes, 0, found.image_digest)
                case GrowVolume(id, size):
                    assert disks[id].size_bytes < size
                    disks[id] = Volume(id, size, 0, disks[id].image_digest)
                case DeleteVolume(id):
                    del disks[id]
                case DeleteImage(digest):
                    assert digest not in {disk.image_digest for disk in disks.values()}
                    images.remove(digest)
    assert plan(wanted, desired, [image(digest) for digest in images], disks.values()) == []
    assert all(disks[v.id].size_bytes >= v.size_bytes for v in desired if not v.absent)
