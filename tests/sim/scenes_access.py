"""Scenes of the checker permitted: who may change something at a revision, and who may not."""

from __future__ import annotations

from typing import Any

from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec
from cairn.proto.v1.binding_pb2 import Binding
from cairn.proto.v1.cluster_pb2 import RequestRecord
from cairn.proto.v1.role_pb2 import Role
from cairn.proto.v1.user_pb2 import User
from google.protobuf.timestamp_pb2 import Timestamp

from tests.sim.stage import SCENES, Stage, scene

__all__ = ["SCENES"]
BY_TOKEN = "CreateVolume of volume/vol-1 was carried out by token tok-1 of bob, which may not"
SAYS = "CreateVolume of volume/vol-1 was carried out for bob, who may not"


def _request(caller: str = "bob", **more: Any) -> tuple[str, str, Any]:
    made = RequestRecord(method="CreateVolume", object="volume/vol-1", caller=f"cairn://user/{caller}", **more)
    return "request", f"{caller}/r-1", made


def _user(**spec: Any) -> tuple[str, str, Any]:
    user = User(id="usr-1", name="bob")
    for name, value in spec.items():
        setattr(user.spec, name, value)
    return "user", "usr-1", user


def _role(name: str) -> tuple[str, str, Any]:
    return "role", "role-1", Role(id="role-1", name=name)


def _binding() -> tuple[str, str, Any]:
    binding = Binding(id="rb-1")
    binding.spec.role, binding.spec.subject.user = "role-1", "usr-1"
    return "binding", "rb-1", binding


def _token(**spec: Any) -> tuple[str, str, Any]:
    token = ApiToken(id="tok-1", spec=ApiTokenSpec(**{"user": "usr-1", "expire_time": Timestamp(seconds=100), **spec}))
    return "api_token", "tok-1", token


@scene("permitted")
def who_has_a_role(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding())
    stage.commit(_request())


@scene("permitted")
def the_first_administrator(stage: Stage) -> None:
    stage.commit(_request("admin"))


@scene("permitted")
def it_is_taken_back_in_the_same_transaction(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding())
    stage.commit(_request(), ("binding", "rb-1", None), ("user", "usr-1", None))


@scene("permitted")
def he_was_refused(stage: Stage) -> None:
    stage.commit(_request(refusal=b"\x08\x07"))


@scene("permitted", SAYS)
def who_is_nobody(stage: Stage) -> None:
    stage.commit(_request())


@scene("permitted", SAYS)
def who_looks_only(stage: Stage) -> None:
    stage.commit(_user(), _role("viewer"), _binding())
    stage.commit(_request())


@scene("permitted", SAYS)
def who_is_disabled(stage: Stage) -> None:
    stage.commit(_user(disabled=True), _role("member"), _binding())
    stage.commit(_request())


@scene("permitted", SAYS)
def it_was_taken_back_before(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding())
    stage.commit(("binding", "rb-1", None))
    stage.commit(_request())


@scene("permitted")
def who_asks_by_a_token(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding(), _token(permissions=["volume.*"]))
    stage.commit(_request(token="tok-1", create_time=Timestamp(seconds=99)), ("api_token", "tok-1", None))


@scene("permitted", BY_TOKEN)
def his_token_is_gone(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding(), _token())
    stage.commit(("api_token", "tok-1", None))
    stage.commit(_request(token="tok-1"))


@scene("permitted", BY_TOKEN)
def his_token_is_disabled(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding(), _token(disabled=True))
    stage.commit(_request(token="tok-1"))


@scene("permitted", BY_TOKEN)
def his_token_has_ended(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding(), _token())
    stage.commit(_request(token="tok-1", create_time=Timestamp(seconds=100)))


@scene("permitted", BY_TOKEN)
def his_token_is_for_something_else(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding(), _token(permissions=["vm.*", "*.see"]))
    stage.commit(_request(token="tok-1"))


@scene("permitted", BY_TOKEN)
def his_token_is_anothers(stage: Stage) -> None:
    stage.commit(_user(), _role("member"), _binding(), _token(user="usr-2"))
    stage.commit(_request(token="tok-1"))
