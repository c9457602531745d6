"""Signed requests: the form that is signed, by published vectors, and who is recognised by it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote

import pytest
from cairn.controller.api.signed import canonical, secret_id, signature_of, verified
from cairn.controller.model.permits import Caller
from cairn.controller.reconcilers.garbage import Garbage
from cairn.proto import kinds
from cairn.proto.errors import TryAgain
from cairn.proto.sealing import KEY_BYTES, Seals
from cairn.proto.seams import timestamp
from cairn.proto.v1.api_token_pb2 import ApiToken, ApiTokenSpec
from cairn.proto.v1.user_pb2 import User
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cloud_kit import Cloud

SEALS = Seals([bytes(KEY_BYTES)])
SECRET = "A9" * 21 + "x"
KEY = "tok-0000000a"
# QingCloud's documentation of its API, "Signature".
ASKED = {
    "count": "1", "vxnets.1": "vxnet-0", "zone": "pek3a", "instance_type": "small_b", "signature_version": "1",
    "signature_method": "HmacSHA256", "instance_name": "demo", "image_id": "centos64x86a", "login_mode": "passwd",
    "login_passwd": "QingCloud20130712", "version": "1", "access_key_id": "QYACCESSKEYIDEXAMPLE", "action": "RunInstances",
    "time_stamp": "2013-08-27T14:30:10Z", "signature": "whatever",
}  # fmt: skip


def test_the_published_example() -> None:
    text = canonical("GET", "/iaas/", ASKED)
    assert text.splitlines()[:2] == ["GET", "/iaas/"]
    assert text.endswith("&time_stamp=2013-08-27T14%3A30%3A10Z&version=1&vxnets.1=vxnet-0&zone=pek3a")
    assert "signature=" not in text
    assert signature_of("SECRETACCESSKEY", text) == unquote("byjccvWIvAftaq%2BoublemagH3bYAlDWxxLFAzAsyslw%3D")


def test_hmac_sha256_of_rfc_4231() -> None:
    """Test case 2."""
    import base64

    wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert base64.b64decode(signature_of("Jefe", "what do ya want for nothing?")).hex() == wanted


def test_how_it_is_encoded() -> None:
    told = canonical("POST", "/", {"b": "", "a": "a b+c~*/=\n", "B": "云", "a.1": "x"})
    assert told == "POST\n/\nB=%E4%BA%91&a=a%20b%2Bc~%2A%2F%3D%0A&a.1=x&b="


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=8), max_size=4))
def test_two_requests_are_never_one_text(parameters: dict[str, str]) -> None:
    _, _, query = canonical("GET", "/", parameters).split("\n", 2)
    parameters.pop("signature", None)
    assert dict(parse_qsl(query, keep_blank_values=True)) == parameters


def cloud_with_key(**spec: Any) -> Cloud:
    cloud = Cloud()
    cloud.put(kinds.USER, "usr-0000000a", User(id="usr-0000000a", name="bob"))
    given_ = ApiTokenSpec(**{"type": ApiTokenSpec.TYPE_SIGNING, "user": "usr-0000000a", **spec})
    given_.expire_time.CopyFrom(timestamp(cloud.now + timedelta(hours=1)))
    cloud.put(kinds.API_TOKEN, KEY, ApiToken(id=KEY, name="gateway", spec=given_))
    cloud.put(kinds.SECRET, secret_id(KEY), SEALS.seal(secret_id(KEY), SECRET.encode(), cloud.now))
    return cloud


def asked(cloud: Cloud, *, secret: str = SECRET, key: str = KEY, source: str = "10.0.0.1", seals: Seals = SEALS) -> Any:
    text = canonical("GET", "/iaas/", ASKED)
    made = signature_of(secret, text)
    return verified(cloud.view, seals, cloud.now, key=key, text=text, signature=made, source=source)


def test_who_signs_is_the_keys_user_by_that_key() -> None:
    assert asked(cloud_with_key()) == Caller("user", "bob", KEY)
    assert asked(cloud_with_key(sources=["10.0.0.0/8"])) == Caller("user", "bob", KEY)


def test_who_is_nobody() -> None:
    cloud = cloud_with_key()
    assert asked(cloud, secret=SECRET[:-1]) is None
    assert asked(cloud, key="tok-00000000") is None
    # What is signed with where there is no such key opens nothing.
    assert asked(cloud, key="tok-00000000", secret="A" * 43) is None
    text = canonical("GET", "/iaas/", ASKED)
    for wrong in ("", "ü", signature_of(SECRET, text)[:-1], signature_of(SECRET, text + " ")):
        assert verified(cloud.view, SEALS, cloud.now, key=KEY, text=text, signature=wrong, source="") is None
    assert asked(cloud_with_key(disabled=True)) is None
    assert asked(cloud_with_key(sources=["10.1.0.0/16"])) is None
    assert asked(cloud_with_key(sources=["10.1.0.0/16"]), source="") is None
    assert asked(cloud_with_key(user="usr-gone0000")) is None
    cloud.now += timedelta(hours=1)
    assert asked(cloud) is None


def test_a_token_that_is_sent_along_signs_nothing() -> None:
    cloud = cloud_with_key(type=ApiTokenSpec.TYPE_BEARER)
    assert asked(cloud) is None
    assert asked(cloud, secret="A" * 43) is None


def test_a_controller_without_the_key_cannot_tell() -> None:
    cloud = cloud_with_key()
    for seals in (Seals(), Seals([bytes([1]) * KEY_BYTES])):
        with pytest.raises(TryAgain, match="another controller"):
            asked(cloud, seals=seals)
    cloud.delete(kinds.SECRET, secret_id(KEY))
    with pytest.raises(TryAgain, match="not there"):
        asked(cloud)


@pytest.mark.parametrize("by_user", [True, False])
def test_what_it_signs_with_goes_with_it(by_user: bool) -> None:
    cloud = cloud_with_key()
    if by_user:
        cloud.delete(kinds.USER, "usr-0000000a")
    else:
        cloud.now += timedelta(days=2)
    cloud.settle((Garbage(),))
    assert not [*cloud.view.ids(kinds.API_TOKEN), *cloud.view.ids(kinds.SECRET)]
