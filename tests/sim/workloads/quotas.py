"""Projects with a quota: several fight for the last of it, through any controllers; what is given back can be taken again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec, CreateApiTokenRequest
from cairn.proto.v1.api_token_pb2_grpc import ApiTokenServiceStub
from cairn.proto.v1.project_pb2 import CreateProjectRequest, DeleteProjectRequest, Project
from cairn.proto.v1.project_pb2_grpc import ProjectServiceStub
from cairn.proto.v1.quota_pb2 import GetQuotaRequest, Quota, UpdateQuotaRequest
from cairn.proto.v1.quota_pb2_grpc import QuotaServiceStub
from cairn.proto.v1.user_pb2 import CreateUserRequest, DeleteUserRequest, UserSpec
from cairn.proto.v1.user_pb2 import User as UserRecord
from cairn.proto.v1.user_pb2_grpc import UserServiceStub
from cairn.proto.v1.volume_pb2 import CreateVolumeRequest, Volume, VolumeSpec
from cairn.proto.v1.volume_pb2_grpc import VolumeServiceStub

from tests.sim.client import MIB
from tests.sim.story import Event, Size, spread
from tests.sim.user import Code, User

MORE = 4
LOOK_S = 1.0


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """A few projects, each with room for a few volumes."""
    for number, at_s in enumerate(spread(draw, size, max(2, size.rounds // 2))):
        yield Event(at_s, draw.choice(size.user_names), "fight_for_quota", (number, draw.choice((1, 2, 3))))


async def fight_for_quota(user: User, number: int, limit: int) -> None:
    """Ask for more than fits; give one back, ask again; have the limit lowered; give all back."""
    name = f"q{number}-{user.name}"
    await user.client.call(ProjectServiceStub, "CreateProject", CreateProjectRequest(project=Project(name=name)))
    await _limit(user, name, volumes=limit, tokens=limit)
    await _fight_for_tokens(user, name, limit)
    made = await _ask(user, name, "a", limit + MORE)
    if len(made) != limit:
        user.asked.contradict(f"project {name} may have {limit} volumes, and got {len(made)} of {limit + MORE} asked for")
    if made:
        await _erase(user, made.pop().id)
    made += await _ask(user, name, "b", MORE)
    if len(made) != limit:
        user.asked.contradict(f"project {name} gave one of {limit} volumes back, asked for {MORE}, and has {len(made)}")
    await _limit(user, name, volumes=0)
    if late := await _ask(user, name, "c", 2):
        user.asked.contradict(f"project {name} may have no volume any more, and {[each.name for each in late]} were made")
    shown = await user.client.call(QuotaServiceStub, "GetQuota", GetQuotaRequest(project=name))
    if shown.status.used["volumes"] > len(made):
        user.asked.contradict(f"project {name} has {len(made)} volumes, and its quota says {shown.status.used['vpcs']}")
    for each in made:
        await _erase(user, each.id)
    await user.client.call(ProjectServiceStub, "DeleteProject", DeleteProjectRequest(id=name))


async def _erase(user: User, volume: str) -> None:
    """Have one removed for good, and wait until it is."""
    await user.client.delete_volume(volume)
    while await user.attempt(user.client.get_volume(volume), Code.NOT_FOUND) is not None:
        await asyncio.sleep(LOOK_S)


async def _fight_for_tokens(user: User, project: str, limit: int) -> None:
    """Ask for more tokens that are good in the project than it may have; they go with whose they are."""
    program = UserRecord(name=f"{project}-program", spec=UserSpec(type=UserSpec.TYPE_SERVICE))
    made = await user.client.call(UserServiceStub, "CreateUser", CreateUserRequest(user=program))
    token = ApiToken(spec=ApiTokenSpec(user=made.id, projects=[project]))
    asked = [CreateApiTokenRequest(api_token=token) for _ in range(MORE)]
    calls = [user.client.call(ApiTokenServiceStub, "CreateApiToken", each) for each in asked]
    answers = await asyncio.gather(*(user.attempt(call, Code.RESOURCE_EXHAUSTED) for call in calls))
    if (got := sum(each is not None for each in answers)) != limit:
        user.asked.contradict(f"project {project} may have {limit} tokens, and got {got} of {MORE} asked for")
    await user.client.call(UserServiceStub, "DeleteUser", DeleteUserRequest(id=made.id))


async def _limit(user: User, project: str, **limits: int) -> None:
    request = UpdateQuotaRequest(quota=Quota(project=project), allow_stale=True)
    request.quota.spec.limits.update(limits)
    request.update_mask.paths.extend(f"spec.limits.{name}" for name in limits)
    await user.client.call(QuotaServiceStub, "UpdateQuota", request)


async def _ask(user: User, project: str, prefix: str, count: int) -> list[Any]:
    """Ask for several at once; return those that were made."""
    volumes = [Volume(name=f"{prefix}{each}", project=project, spec=VolumeSpec(size_bytes=MIB)) for each in range(count)]
    calls = [user.client.call(VolumeServiceStub, "CreateVolume", CreateVolumeRequest(volume=volume)) for volume in volumes]
    answers = await asyncio.gather(*(user.attempt(call, Code.RESOURCE_EXHAUSTED) for call in calls))
    return [each for each in answers if each is not None]


ACTS = {"fight_for_quota": fight_for_quota}
