"""The list filter: a subset of AIP-160, checked against the message before it is used."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cairn.controller.api.filter import mentions, parse, pinned, predicate
from cairn.proto.errors import Invalid
from cairn.proto.v1.event_pb2 import Event
from cairn.proto.v1.image_pb2 import Image
from cairn.proto.v1.vm_pb2 import Vm, VmStatus
from hypothesis import given
from hypothesis import strategies as st

WEB = Vm(name="web", labels={"env": "test"}, reconciling=True)
WEB.spec.cpus = 2
WEB.status.state = VmStatus.STATE_RUNNING
WEB.status.say = 'running on "n1"'
WEB.create_time.FromJsonString("2026-01-02T03:04:05Z")


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", True),
        ("name=web", True),
        ("name!=web", False),
        ("name=w*", True),
        ("name=*b", True),
        ("name=w*x", False),
        ("name:e", True),
        ("name = web AND spec.cpus >= 2", True),
        ("name=web spec.cpus>2", False),
        ("spec.cpus<3 AND spec.cpus<=2", True),
        ("status.state=RUNNING", True),
        ("status.state=STATE_RUNNING", True),
        ("status.state!=RUNNING", False),
        ("reconciling=true", True),
        ("labels.env=test", True),
        ("labels.env=prod", False),
        ("labels.zone=test", False),
        ("labels.zone!=test", True),
        ("labels.env:*", True),
        ("labels:env", True),
        ("labels:zone", False),
        ("create_time>2026-01-01T00:00:00Z", True),
        ('create_time>"2026-01-03T00:00:00Z"', False),
        ("delete_time:*", False),
        ("create_time:*", True),
        (r'status.say="running on \"n1\""', True),
        ('name=""', False),
    ],
)
def test_what_passes(text: str, passes: bool) -> None:
    assert predicate(text, Vm.DESCRIPTOR)(WEB) is passes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour=red", "no field 'colour'"),
        ("status.colour=red", "no field 'status.colour'"),
        ("name.x=1", "no field"),
        ("name", "FIELD OP VALUE"),
        ("name=", "FIELD OP VALUE"),
        ("=web", "FIELD OP VALUE"),
        ("name=web OR name=db", "'OR' is not supported"),
        ("NOT name=web", "'NOT' is not supported"),
        ("(name=web)", "not supported"),
        ("-name=web", "not supported"),
        ("spec.cpus=two", "not a number"),
        ("reconciling=yes", "true or false"),
        ("status.state=FLYING", "not a value of status.state"),
        ("spec=1", "is a message"),
        ("spec.nics=1", "list"),
        ("spec.nics.subnet=a", "list"),
        ("labels=env", "compare a key"),
        ("create_time>yesterday", "RFC 3339"),
        ("x" * 3000, "at most 2048"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        predicate(text, Vm.DESCRIPTOR)
    assert caught.value.field == "filter"


def test_lists_are_asked_whether_they_hold_something() -> None:
    image = Image()
    image.status.nodes.append("n1")
    assert predicate("status.nodes:n1", Image.DESCRIPTOR)(image)
    assert not predicate("status.nodes:n2", Image.DESCRIPTOR)(image)


def test_enums_without_a_common_prefix_still_compare() -> None:
    assert predicate("warning=false object_name=web", Event.DESCRIPTOR)(Event(object_name="web"))


@given(st.text(max_size=60))
def test_no_text_does_worse_than_being_refused(text: str) -> None:
    with suppress(Invalid):
        predicate(text, Vm.DESCRIPTOR)(WEB)


def test_mentions_sees_paths_not_values() -> None:
    assert mentions("delete_time:* AND name=x", "delete_time")
    assert not mentions("name=delete_time", "delete_time")
    assert [comparison.value for comparison in parse("a=2026-01-02T03:04:05Z b=1")] == ["2026-01-02T03:04:05Z", "1"]


@pytest.mark.parametrize(
    ("text", "only"),
    [
        ('id = "i-1"', "i-1"),
        ("name=web AND id=i-1", "i-1"),
        ("", ""),
        ("id=i-*", ""),
        ("id:i-1", ""),
        ("id!=i-1", ""),
        ("name=i-1", ""),
    ],
)
def test_a_filter_for_one_id_is_known(text: str, only: str) -> None:
    assert pinned(text) == only


def test_a_wrong_state_is_answered_with_those_there_are() -> None:
    with pytest.raises(Invalid, match=r"'RUNING' is not a value of status.state: PENDING, STARTING, RUNNING,") as refused:
        predicate("status.state = RUNING", Vm.DESCRIPTOR)
    assert "UNSPECIFIED" not in str(refused.value)


@pytest.mark.parametrize("text", ["spec.user_data<x", "spec.user_data=1", "spec.user_data:x"])
def test_bytes_are_not_compared(text: str) -> None:
    with pytest.raises(Invalid, match="is bytes"):
        predicate(text, Vm.DESCRIPTOR)(Vm())
