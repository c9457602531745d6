"""net/questions.py: what a guest is told of its VPC, what is passed on and how, and that no bytes break it."""

from __future__ import annotations

import random
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from cairn.net.names import Named, Names
from cairn.net.questions import QUERY_BYTES_MAX, Query, Zone, judged

VPC = "rtr-0000000a"
HOME = "home.cairn.internal"


def zone(domain: str = HOME) -> Zone:
    names = Names()
    names.put("port/1", Named(VPC, "web", ("10.1.1.2",)))
    names.put("forward/2", Named(VPC, "db", ("10.1.1.10", "10.1.2.9", "fd00::5")))
    return Zone(domain, "10.1.0.0/16", lambda host: names.addresses(VPC, host), lambda address: names.hostname(VPC, address))


def asked(name: str, kind: str = "A", *, udp: bool = True, **more: Any) -> Any:
    """The answer as a message, or the Query, or None."""
    wire = dns.message.make_query(name, kind, **more).to_wire()
    answer = judged(wire, zone(), udp=udp)
    return dns.message.from_wire(answer) if isinstance(answer, bytes) else answer


def addresses(answer: Any) -> list[str]:
    return [str(record) for rrset in answer.answer for record in rrset]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("web.home.cairn.internal.", "A", ["10.1.1.2"]),
        ("WEB.Home.Cairn.Internal.", "A", ["10.1.1.2"]),
        ("db.home.cairn.internal.", "A", ["10.1.1.10", "10.1.2.9"]),
        ("db.home.cairn.internal.", "AAAA", ["fd00::5"]),
        ("web.", "A", ["10.1.1.2"]),
        ("2.1.1.10.in-addr.arpa.", "PTR", ["web.home.cairn.internal."]),
    ],
)
def test_guests_are_found(name: str, kind: str, expected: list[str]) -> None:
    answer = asked(name, kind)
    assert (answer.rcode(), sorted(addresses(answer))) == (dns.rcode.NOERROR, expected)
    assert answer.flags & dns.flags.AA
    assert answer.flags & dns.flags.RA


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("nobody.home.cairn.internal.", "A", dns.rcode.NXDOMAIN),
        ("web.other.cairn.internal.", "A", dns.rcode.NXDOMAIN),
        ("a.web.home.cairn.internal.", "A", dns.rcode.NXDOMAIN),
        ("9.9.1.10.in-addr.arpa.", "PTR", dns.rcode.NXDOMAIN),
        ("web.home.cairn.internal.", "AAAA", dns.rcode.NOERROR),
        ("web.home.cairn.internal.", "TXT", dns.rcode.NOERROR),
        ("home.cairn.internal.", "A", dns.rcode.NOERROR),
        ("cairn.internal.", "NS", dns.rcode.NOERROR),
        ("2.1.1.10.in-addr.arpa.", "A", dns.rcode.NOERROR),
    ],
)
def test_what_is_not_there_is_said_for_a_while_and_asked_nowhere_else(name: str, kind: str, rcode: dns.rcode.Rcode) -> None:
    answer = asked(name, kind)
    assert (answer.rcode(), answer.answer) == (rcode, [])
    assert [rrset.rdtype for rrset in answer.authority] == [dns.rdatatype.SOA]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("example.org.", "A"),
        ("internal.", "A"),
        ("elsewhere.internal.", "A"),
        ("unknown.", "A"),
        ("web.", "NS"),
        ("1.1.2.10.in-addr.arpa.", "PTR"),
        ("1.10.in-addr.arpa.", "PTR"),
        (".", "NS"),
    ],
)
def test_others_are_asked_of_others(name: str, kind: str) -> None:
    query = asked(name, kind)
    assert isinstance(query, Query)
    assert query.sent.question[0].to_text() == f"{name} IN {kind}"


def test_a_network_without_a_domain_has_no_names_but_labels() -> None:
    wire = dns.message.make_query("web.home.cairn.internal.", "A").to_wire()
    assert isinstance(judged(wire, zone(""), udp=True), Query)


def test_what_is_passed_on_says_nothing_of_the_guest() -> None:
    query = dns.message.make_query("example.org.", "A", want_dnssec=True)
    query.use_edns(0, dns.flags.DO, 4096, options=[dns.edns.GenericOption(10, b"cookie..")])
    query.flags |= dns.flags.CD
    passed = judged(query.to_wire(), zone(), udp=True)
    assert isinstance(passed, Query)
    sent = dns.message.from_wire(passed.sent.to_wire())
    assert (sent.payload, sent.options, sent.additional) == (1232, (), [])
    assert (sent.flags & dns.flags.CD, sent.flags & dns.flags.RD, sent.ednsflags & dns.flags.DO) == (
        dns.flags.CD, dns.flags.RD, dns.flags.DO,
    )  # fmt: skip
    ids = {asked("example.org.", id=7).sent.id for _ in range(20)}
    assert len(ids) > 10, "ids are drawn"


@pytest.mark.parametrize(
    ("change", "rcode"),
    [
        ({"rdclass": "CH"}, dns.rcode.REFUSED),
        ({"rdtype": "AXFR"}, dns.rcode.REFUSED),
        ({"use_edns": 1}, dns.rcode.BADVERS),
    ],
)
def test_refused(change: dict[str, Any], rcode: dns.rcode.Rcode) -> None:
    fields = {"qname": "web.home.cairn.internal.", "rdtype": "A", **change}
    wire = dns.message.make_query(**fields).to_wire()
    answer = judged(wire, zone(), udp=True)
    assert isinstance(answer, bytes)
    assert dns.message.from_wire(answer).rcode() == rcode


def test_strange_headers() -> None:
    wire = dns.message.make_query("web.", "A", id=0x1234).to_wire()
    none, two = wire[:4] + bytes(8), wire[:4] + b"\0\2" + wire[6:]
    for strange, rcode in ((none, 1), (two, 1), (wire[:-3], 1), (wire[:2] + b"\x28" + wire[3:], 4)):
        answer = judged(strange, zone(), udp=True)
        assert isinstance(answer, bytes)
        assert (answer[:2], len(answer), answer[2] & 0x80, answer[3] & 0xF) == (b"\x12\x34", 12, 0x80, rcode)
    assert judged(wire[:2] + b"\x80" + wire[3:], zone(), udp=True) is None, "an answer is not answered"
    assert judged(wire[:11], zone(), udp=True) is None
    assert len(judged(wire + bytes(QUERY_BYTES_MAX), zone(), udp=True) or b"") == 12


def upstream(query: Query, records: int, *, rcode: int = 0) -> dns.message.Message:
    """An answer with so many addresses."""
    answer = dns.message.make_response(query.sent)
    answer.set_rcode(rcode)
    if records:
        found = [f"198.51.{n >> 8}.{n & 255}" for n in range(records)]
        answer.answer.append(dns.rrset.from_text(query.sent.question[0].name, 60, "IN", "A", *found))
    return answer


def test_answers_are_as_long_as_a_guest_takes_and_no_longer() -> None:
    for fields, udp, bytes_max in (
        ({}, True, 512), ({"use_edns": 0, "payload": 900}, True, 900), ({"use_edns": 0, "payload": 65000}, True, 1232),
        ({"use_edns": 0, "payload": 100}, True, 512), ({}, False, 65535),
    ):  # fmt: skip
        query = asked("example.org.", udp=udp, id=99, **fields)
        told = query.reply(query.answered(upstream(query, 500).to_wire(max_size=65535)))
        message = dns.message.from_wire(told)
        assert len(told) <= bytes_max
        assert message.id == 99
        assert bool(message.flags & dns.flags.TC) == udp
        assert len(addresses(message)) == 500 or udp
        assert message.edns == (0 if fields else -1)


def test_what_was_not_asked_is_no_answer() -> None:
    query = asked("example.org.")
    right = upstream(query, 1)
    assert query.answered(right.to_wire()) is not None
    right.id ^= 1
    assert query.answered(right.to_wire()) is None
    right.id ^= 1
    right.question = dns.message.make_query("example.com.", "A").question
    assert query.answered(right.to_wire()) is None
    assert query.answered(query.sent.to_wire()) is None, "a question"
    assert query.answered(b"") is None


def test_a_code_that_needs_edns_is_a_failure_without_it() -> None:
    query = asked("example.org.")
    assert dns.message.from_wire(query.reply(upstream(query, 0, rcode=23))).rcode() == dns.rcode.SERVFAIL
    query = asked("example.org.", use_edns=0)
    assert dns.message.from_wire(query.reply(upstream(query, 0, rcode=23))).rcode() == 23


def test_all_there_is_of_a_name_is_not_told_over_udp() -> None:
    assert asked("db.home.cairn.internal.", "ANY").flags & dns.flags.TC
    assert asked("example.org.", "ANY").flags & dns.flags.TC
    assert len(addresses(asked("db.home.cairn.internal.", "ANY", udp=False))) == 3
    assert isinstance(asked("example.org.", "ANY", udp=False), Query)


def mutated(wire: bytes, rng: random.Random) -> bytes:
    data = bytearray(wire)
    for _ in range(rng.randint(1, 6)):
        match rng.randrange(4):
            case 0:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 1:
                del data[rng.randrange(1, len(data) + 1) :]
            case 2:
                at = rng.randrange(len(data) + 1)
                data[at:at] = rng.randbytes(rng.randint(1, 20))
            case _:
                # Lengths and pointers.
                data[rng.randrange(len(data))] = rng.choice((0, 0x3F, 0x40, 0xC0, 0xFF))
        data = data or bytearray(1)
    return bytes(data)


def test_no_bytes_break_it() -> None:
    """20,000 packets that once were questions, and as many that once were answers."""
    rng = random.Random(53)
    questions = [
        dns.message.make_query("db.home.cairn.internal.", "A", use_edns=0, payload=1232).to_wire(),
        dns.message.make_query("2.1.1.10.in-addr.arpa.", "PTR").to_wire(),
        dns.message.make_query("example.org.", "ANY", want_dnssec=True).to_wire(),
        dns.message.make_query("web.", "AAAA").to_wire(),
    ]
    here, verdicts = zone(), set[type]()
    for _ in range(20_000):
        data, udp = mutated(rng.choice(questions), rng), rng.random() < 0.5
        verdict = judged(data, here, udp=udp)
        verdicts.add(type(verdict))
        if isinstance(verdict, bytes):
            assert verdict[:2] == data[:2]
            assert verdict[2] & 0x80
            assert len(verdict) <= (1232 if udp else 65535)
        elif verdict is not None:
            assert dns.message.from_wire(verdict.sent.to_wire()).question == verdict.sent.question
    assert verdicts == {bytes, Query, type(None)}
    query = asked("example.org.", use_edns=0)
    answer = upstream(query, 3)
    answer.authority.append(dns.rrset.from_text("org.", 60, "IN", "SOA", "a. b. 1 2 3 4 5"))
    answer.additional.append(dns.rrset.from_text("a.", 60, "IN", "TXT", '"text" "more"'))
    wire, read = answer.to_wire(), 0
    for _ in range(20_000):
        found = query.answered(mutated(wire, rng))
        if found is not None:
            read += 1
            assert len(query.reply(found)) <= 1232
    assert read > 1000
