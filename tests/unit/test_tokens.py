"""API tokens without a server: what narrowing leaves, how tries are counted, where a caller is, what garbage takes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cairn.controller.api import bearer
from cairn.controller.api.bearer import ADDRESSES_MAX, BAD_MAX, FORGIVEN_PER_S, GOOD_MAX, Tries, source_of
from cairn.controller.model.authority import Authority, Grant, is_lesser, narrowed, summed
from cairn.controller.model.damage import findings
from cairn.controller.model.roles import expanded
from cairn.controller.reconcilers.garbage import Garbage
from cairn.proto import kinds
from cairn.proto.errors import Unauthenticated
from cairn.proto.seams import timestamp
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.user_pb2 import User
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cloud_kit import Cloud

PERMISSIONS = ("vm.see", "vm.delete", "volume.see", "user.see")
PROJECTS = ("", "prj-red00000", "prj-blue0000")
ROLES = ("role-a", "role-b")


@st.composite
def grants(draw: st.DrawFn) -> Grant:
    project = draw(st.sampled_from(PROJECTS))
    allowed = draw(st.frozensets(st.sampled_from(PERMISSIONS)))
    # An object is of one project.
    object = draw(st.sampled_from(("", f"vm/{project}"))) if project else ""
    return Grant("rb-1", allowed, draw(st.sampled_from(ROLES)), "usr-1", project, object)


specs = st.builds(
    ApiTokenSpec,
    permissions=st.lists(st.sampled_from(("vm.*", "*.see", "user.see")), max_size=2),
    roles=st.lists(st.sampled_from(ROLES), max_size=1),
    projects=st.lists(st.sampled_from(PROJECTS[1:]), max_size=2, unique=True),
)


def allowed(of: Authority, permission: str, project: str, object: str) -> bool:
    """What is asked one by one and what is summed for lists say the same."""
    said = of.allows(permission, project, object)
    assert said == bool(of.reasons(permission, project, object))
    return said


@given(st.lists(grants(), max_size=4), specs)
def test_a_token_leaves_what_the_user_has_and_it_is_narrowed_to(given_: list[Grant], spec: ApiTokenSpec) -> None:
    left = narrowed(summed(tuple(given_)), ApiToken(spec=spec))
    by_role = summed(tuple(each for each in given_ if not spec.roles or each.role in spec.roles))
    for permission in PERMISSIONS:
        for project in PROJECTS:
            for object in ("", f"vm/{project}") if project else ("",):
                wanted = (
                    allowed(by_role, permission, project, object)
                    and (not spec.permissions or permission in expanded(tuple(spec.permissions)))
                    and (not spec.projects or project in spec.projects)
                )
                assert allowed(left, permission, project, object) == wanted
    assert is_lesser(ApiToken(spec=spec)) == bool(spec.permissions or spec.roles or spec.projects)


@dataclass
class Clock:
    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


def bad(tries: Tries, source: str, count: int) -> int:
    """Try so many; return how many were looked at."""
    looked = 0
    for number in range(count):
        digest = str(number).encode()
        if tries.may(source, digest):
            tries.note(source, digest, good=False)
            looked += 1
    return looked


def test_so_many_are_looked_at_and_slowly_more() -> None:
    clock = Clock()
    tries = Tries(clock)
    assert bad(tries, "10.0.0.1", 1000) == BAD_MAX
    assert bad(tries, "10.0.0.2", 1) == 1, "another address is another's"
    clock.time += timedelta(seconds=3 / FORGIVEN_PER_S)
    assert bad(tries, "10.0.0.1", 1000) == 3
    clock.time += timedelta(days=1)
    assert bad(tries, "10.0.0.1", 1000) == BAD_MAX


def test_who_has_a_network_of_ipv6_has_one_address() -> None:
    tries = Tries(Clock())
    assert sum(bad(tries, f"2001:db8::{number:x}", 1) for number in range(100)) == BAD_MAX
    assert bad(tries, "2001:db8:0:1::1", 1) == 1


def test_a_good_one_is_looked_at_whoever_guesses_beside_it_until_it_is_bad() -> None:
    tries = Tries(Clock())
    tries.note("10.0.0.1", b"good", good=True)
    bad(tries, "10.0.0.1", 1000)
    assert tries.may("10.0.0.1", b"good")
    assert not tries.may("10.0.0.1", b"other")
    tries.note("10.0.0.1", b"good", good=False)
    assert not tries.may("10.0.0.1", b"good")


def test_a_clock_that_goes_back_forgives_nothing_and_adds_nothing() -> None:
    clock = Clock()
    tries = Tries(clock)
    bad(tries, "10.0.0.1", 10)
    clock.time -= timedelta(hours=1)
    assert bad(tries, "10.0.0.1", 1000) == BAD_MAX - 10


def test_the_memory_of_tries_is_bounded() -> None:
    tries = Tries(Clock())
    for number in range(ADDRESSES_MAX + 100):
        tries.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", b"x", good=False)
    for number in range(GOOD_MAX + 100):
        tries.note("10.0.0.1", str(number).encode(), good=True)
    assert (len(tries._bad), len(tries._good)) == (ADDRESSES_MAX, GOOD_MAX)


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:[::1]:5000", "::1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("ipv6:[::ffff:10.0.0.1]:5000", "10.0.0.1"),
        ("ipv6:[fe80::1%25eth0]:5000", "fe80::1"),
        ("unix:", ""),
        ("unix:/run/x.sock", ""),
        ("user-bob", ""),
        ("ipv4:nonsense", ""),
    ],
)
def test_where_a_caller_is(peer: str, source: str) -> None:
    assert source_of(peer) == source


def test_what_is_sent_otherwise_than_once_is_no_token() -> None:
    assert bearer.sent(None) is None
    assert bearer.sent([("user-agent", "x")]) is None
    assert bearer.sent([("authorization", "bearer x")]) == "x"
    for wrong in ([("authorization", "x")], [("authorization", "Bearer x")] * 2, [("authorization", "Basic x")]):
        with pytest.raises(Unauthenticated) as caught:
            bearer.sent(wrong)
        assert caught.value.say == bearer.SAY


def cloud_with_token() -> Cloud:
    cloud = Cloud()
    cloud.put(kinds.USER, "usr-0000000a", User(id="usr-0000000a", name="bob"))
    token = ApiToken(id="tok-0000000a", name="laptop")
    token.spec.user = "usr-0000000a"
    token.spec.expire_time.CopyFrom(timestamp(cloud.now + timedelta(hours=1)))
    cloud.put(kinds.API_TOKEN, token.id, token)
    claim = NameClaim(kind="api_token", project="-", name="laptop", id=token.id)
    cloud.put(kinds.NAME, "-/api_token/laptop", claim)
    return cloud


def left(cloud: Cloud) -> list[str]:
    return [*cloud.view.ids(kinds.API_TOKEN), *cloud.view.ids(kinds.NAME)]


def test_a_token_that_has_ended_is_kept_a_day_to_be_looked_at_and_goes_with_its_name() -> None:
    cloud = cloud_with_token()
    cloud.settle((Garbage(),))
    cloud.now += timedelta(hours=24)
    cloud.settle((Garbage(),))
    assert len(left(cloud)) == 2
    cloud.now += timedelta(hours=1, seconds=1)
    cloud.settle((Garbage(),))
    assert left(cloud) == []


def test_a_token_goes_with_its_user() -> None:
    cloud = cloud_with_token()
    assert list(Garbage().keys(cloud.view, kinds.USER, "usr-0000000a")) == ["api_token/tok-0000000a"]
    cloud.delete(kinds.USER, "usr-0000000a")
    cloud.settle((Garbage(),))
    assert left(cloud) == []


def test_fsck_tells_of_a_token_whose_user_or_role_is_gone() -> None:
    cloud = cloud_with_token()
    token = cloud.edit(kinds.API_TOKEN, "tok-0000000a")
    token.spec.roles.append("role-00000000")
    cloud.put(kinds.API_TOKEN, token.id, token)
    assert [each.say for each in findings(cloud.view) if each is not None] == ["role role-00000000 is not there"]
    cloud.delete(kinds.USER, "usr-0000000a")
    assert "user usr-0000000a is not there" in [each.say for each in findings(cloud.view) if each is not None]
