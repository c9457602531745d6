"""A user deletes by name and makes another of that name; then the deletion is asked for again, as networks may do any time."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from cairn.proto.v1 import image_pb2, vpc_pb2
from cairn.proto.v1.image_pb2_grpc import ImageServiceStub
from cairn.proto.v1.vpc_pb2_grpc import VpcServiceStub

from tests.sim.asked import AskedSubnet
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One user, some times."""
    user = draw.choice(size.user_names)
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 2))):
        yield Event(at_s, user, draw.choice(("vpc_again", "vpc_again", "image_again")), (f"again-{user}-{number}",))


async def vpc_again(user: User, name: str) -> None:
    """The second VPC of that name takes a subnet, whatever was asked for about the first."""
    first = await user.client.create_vpc(name, "10.7.0.0/16")
    request = vpc_pb2.DeleteVpcRequest(id=name, request_id=user.client.request_id())
    await _delete(user, VpcServiceStub, "DeleteVpc", request, first.id)
    await user.client.create_vpc(name, "10.7.0.0/16")
    await _delete(user, VpcServiceStub, "DeleteVpc", request, first.id)
    made = await user.attempt(user.client.create_subnet_in(name, name, "10.7.0.0/24"), Code.FAILED_PRECONDITION)
    if made is None:
        user.asked.contradict(f"VPC {name} was made and takes no subnet: nobody asked for its end")
        return
    user.asked.subnets[made.id] = AskedSubnet(made.id, name, user.name, name)


async def image_again(user: User, name: str) -> None:
    """The second image of that name is no more asked to go than it was."""
    first = await user.client.create_image(name, b"\x01" * 512, "")
    request = image_pb2.DeleteImageRequest(id=name, request_id=user.client.request_id())
    await _delete(user, ImageServiceStub, "DeleteImage", request, first.id)
    second = await user.client.create_image(name, b"\x01" * 512, "")
    await _delete(user, ImageServiceStub, "DeleteImage", request, first.id)
    seen = await user.client.image(second.id)
    if seen.HasField("delete_time"):
        user.asked.contradict(f"image {name} ({second.id}) is being deleted: nobody asked for its end")
    await user.client.delete_image(second.id)


async def _delete(user: User, service: Any, method: str, request: Any, first: str) -> None:
    """Ask for the end of the first, and be answered with it."""
    gone = await user.client.call(service, method, request)
    user.asked.answered(request.request_id, gone.id)
    if gone.id != first:
        user.asked.contradict(f"{method} {request.id} was answered with {gone.id}, and was about {first}")


ACTS = {"vpc_again": vpc_again, "image_again": image_again}
