"""Bounds of request fields: pure functions."""

from __future__ import annotations

import base64
from contextlib import suppress

import pytest
from cairn.controller.api import validation
from cairn.proto.errors import Invalid
from hypothesis import given
from hypothesis import strategies as st


def key(kind: str = "ssh-ed25519", inside: str = "") -> str:
    name = (inside or kind).encode()
    blob = len(name).to_bytes(4, "big") + name + b"\0\0\0\x20" + b"k" * 32
    return f"{kind} {base64.b64encode(blob).decode()} me@here"


@pytest.mark.parametrize("text", [key(), key("ssh-rsa"), key() + "\n", key().removesuffix(" me@here")])
def test_good_ssh_keys(text: str) -> None:
    assert validation.ssh_key("k", text) == text.strip()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not an OpenSSH public key"),
        ("ssh-dss AAAA", "not an OpenSSH public key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key: give the .pub file"),
        ("ssh-ed25519 !!!", "damaged"),
        (key("ssh-ed25519", inside="ssh-rsa"), "does not hold a ssh-ed25519 key"),
        (key() + "\n" + key(), "several lines"),
        ("ssh-ed25519 " + "A" * 20000, "at most 16384"),
    ],
)
def test_bad_ssh_keys(text: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        validation.ssh_key("k", text)


@given(st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True))
def test_good_names_pass(text: str) -> None:
    if not validation.ID_LIKE.fullmatch(text):
        assert validation.name("name", text) == text


@given(st.text(max_size=80))
def test_no_name_that_is_not_a_dns_label_passes(text: str) -> None:
    with suppress(Invalid):
        validation.name("name", text)
        assert len(text) <= 63
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert text[0].isalpha()
        assert text[-1] != "-"


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_a_vpc_is_private_and_its_host_bits_are_zero(address: int, prefix: int) -> None:
    text = ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0)) + f"/{prefix}"
    with suppress(Invalid):
        network = validation.vpc_cidr("cidr", text)
        assert network.is_private
        assert 8 <= prefix <= 28
        assert int(network.network_address) == address


@pytest.mark.parametrize("text", ["", "x", "0191d9a0-5b1c-4c55-9d1c", "{0191d9a0-5b1c-4c55-9d1c-1a2b3c4d5e6f}"])
def test_request_ids_are_uuids(text: str) -> None:
    with pytest.raises(Invalid, match="UUID"):
        validation.request_id(text)
    validation.request_id("0191D9A0-5b1c-4c55-9d1c-1a2b3c4d5e6f")


def test_labels_are_bounded() -> None:
    validation.labels("labels", {"a/b.c": "", "zone": "a"})
    for bad in ({"": "x"}, {"-a": "x"}, {"a": "x" * 64}, {f"k{n}": "" for n in range(65)}):
        with pytest.raises(Invalid):
            validation.labels("labels", bad)
