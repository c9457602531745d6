"""Names as guests ask for them (RFC 1034, 1035, 6891): what is asked, what this node answers itself, what it passes on.

Pure: bytes -> bytes, or a Query that somebody has to ask a real resolver. This node answers for the VPC's domain
("web.home.cairn.internal"), for single labels that are a guest's name, and for addresses inside the VPC (PTR); what lies under
the domain of all VPCs is never asked elsewhere. A question that is passed on is written anew: nothing of a guest's packet but
its name, type and three flags leaves the node, and nothing of an answer but its records comes back.

A guest may send anything. What cannot be read is answered with a header alone, what is itself an answer with nothing; no answer
over UDP is longer than a guest said it takes, nor than 1232 bytes (DNS flag day 2020).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA

HEADER_BYTES: Final = 12
# Of queries; longer ones are nobody's.
QUERY_BYTES_MAX: Final = 1232
UDP_BYTES_MAX: Final = 1232
TCP_BYTES_MAX: Final = 65_535
# How long a guest may believe in a name, and in there being none.
TTL_S: Final = 30
NEGATIVE_TTL_S: Final = 5
_UDP_BYTES_PLAIN: Final = 512
_REVERSE: Final = (dns.reversename.ipv4_reverse_domain, dns.reversename.ipv6_reverse_domain)
_ADDRESS: Final[dict[int, Callable[..., Any]]] = {4: A, 6: AAAA}
_TRANSFERS: Final = (dns.rdatatype.AXFR, dns.rdatatype.IXFR)
# dnspython raises these for bytes that are no message.
_UNREADABLE: Final = (dns.exception.DNSException, ValueError, struct.error)


@dataclass(frozen=True, slots=True)
class Zone:
    """What this node knows of a VPC. domain: "home.cairn.internal", or "": its guests are called nothing."""

    domain: str
    cidr: str
    # Hostname -> addresses; address -> hostname. Nothing, "": nobody.
    addresses: Callable[[str], list[str]]
    hostname: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Query:
    """A question to be passed on. udp: how the guest asked it."""

    asked: dns.message.Message
    udp: bool
    # As it is passed on: with an id of its own.
    sent: dns.message.Message

    def answered(self, wire: bytes) -> dns.message.Message | None:
        """Return what a resolver answered; None: that is no answer to this."""
        try:
            found: dns.message.Message = dns.message.from_wire(wire)
            return found if self.sent.is_response(found) else None
        except _UNREADABLE:
            return None

    def reply(self, answer: dns.message.Message) -> bytes:
        """Return what the guest is told."""
        response, rcode = _response(self.asked), answer.rcode()
        if rcode > 15 and self.asked.edns < 0:
            # Cannot be said without EDNS.
            return self.failed()
        response.set_rcode(rcode)
        response.flags |= answer.flags & (dns.flags.TC | dns.flags.AD)
        response.answer, response.authority, response.additional = answer.answer, answer.authority, answer.additional
        try:
            return _wire(response, self.asked, udp=self.udp)
        except _UNREADABLE:
            return self.failed()

    def failed(self) -> bytes:
        """Return what the guest is told when nobody answered."""
        response = _response(self.asked)
        response.set_rcode(dns.rcode.SERVFAIL)
        return _wire(response, self.asked, udp=self.udp)


def judged(wire: bytes, zone: Zone, *, udp: bool) -> bytes | Query | None:
    """Return the answer to a guest's message, or what to pass on, or None for silence."""
    if len(wire) < HEADER_BYTES or wire[2] & 0x80:
        # An answer to an answer would be the beginning of a conversation without end.
        return None
    if len(wire) > QUERY_BYTES_MAX:
        return _header(wire, dns.rcode.FORMERR)
    if wire[2] >> 3 & 0xF != dns.opcode.QUERY:
        return _header(wire, dns.rcode.NOTIMP)
    try:
        asked = dns.message.from_wire(wire)
        if len(asked.question) != 1:
            return _header(wire, dns.rcode.FORMERR)
        return _judged(asked, zone, udp=udp)
    except _UNREADABLE:
        return _header(wire, dns.rcode.FORMERR)


def _header(wire: bytes, rcode: int) -> bytes:
    """Return an answer of a header alone: same id, opcode and RD, no records."""
    return wire[:2] + bytes([0x80 | wire[2] & 0x79, rcode]) + bytes(8)


def _judged(asked: dns.message.Message, zone: Zone, *, udp: bool) -> bytes | Query:
    question = asked.question[0]
    response = _response(asked)
    if asked.edns > 0:
        response.set_rcode(dns.rcode.BADVERS)
    elif question.rdclass != dns.rdataclass.IN or question.rdtype in _TRANSFERS:
        response.set_rcode(dns.rcode.REFUSED)
    elif question.rdtype == dns.rdatatype.ANY and udp:
        # All there is of a name is what is asked for to have much sent for little: over TCP only (RFC 8482).
        response.flags |= dns.flags.TC
    elif not _own(response, question, zone):
        return Query(asked, udp, _passed_on(asked))
    return _wire(response, asked, udp=udp)


def _response(asked: dns.message.Message) -> dns.message.Message:
    response: dns.message.Message = dns.message.make_response(asked, recursion_available=True, our_payload=UDP_BYTES_MAX)
    if response.edns >= 0:
        response.ednsflags |= asked.ednsflags & dns.flags.DO
    return response


def _wire(response: dns.message.Message, asked: dns.message.Message, *, udp: bool) -> bytes:
    """Return an answer as bytes; what does not fit is left out, and that said (TC)."""
    bytes_max = TCP_BYTES_MAX
    if udp:
        bytes_max = max(_UDP_BYTES_PLAIN, min(asked.payload, UDP_BYTES_MAX)) if asked.edns >= 0 else _UDP_BYTES_PLAIN
    wire: bytes = response.to_wire(max_size=bytes_max, prefer_truncation=True)
    return wire


def _passed_on(asked: dns.message.Message) -> dns.message.Message:
    question = asked.question[0]
    sent: dns.message.Message = dns.message.make_query(
        question.name,
        question.rdtype,
        use_edns=0,
        payload=UDP_BYTES_MAX,
        want_dnssec=bool(asked.ednsflags & dns.flags.DO),
    )
    sent.flags |= asked.flags & (dns.flags.CD | dns.flags.AD)
    return sent


# --- what this node answers itself -----------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _name(text: str) -> dns.name.Name:
    name: dns.name.Name = dns.name.from_text(text)
    return name


def _own(response: dns.message.Message, question: dns.rrset.RRset, zone: Zone) -> bool:
    """Answer what is ours to answer; False: it is not."""
    name = question.name
    if zone.domain and name.is_subdomain(_name(zone.domain).parent()):
        _ours(response, question, zone)
        return True
    single = len(name) == 2 and question.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
    if single and (addresses := zone.addresses(_label(name))):
        _records(response, question, zone, addresses)
        return True
    if any(name.is_subdomain(suffix) for suffix in _REVERSE):
        return _reverse(response, question, zone)
    return False


def _label(name: dns.name.Name) -> str:
    """Return the first label as hostnames are spelt; one that no hostname can be is nobody's."""
    label: bytes = name[0]
    return label.decode("latin-1").lower()


def _ours(response: dns.message.Message, question: dns.rrset.RRset, zone: Zone) -> None:
    """Answer under the domain of all VPCs, of which this one's guests are known and nobody else's."""
    name, domain = question.name, _name(zone.domain)
    if domain.is_subdomain(name):
        # The domain itself, or what it is in: there, with nothing under that name.
        _records(response, question, zone, [])
    elif name.parent() == domain and (addresses := zone.addresses(_label(name))):
        _records(response, question, zone, addresses)
    else:
        _nobody(response, zone)


def _records(response: dns.message.Message, question: dns.rrset.RRset, zone: Zone, addresses: list[str]) -> None:
    """Answer with the addresses of the family asked for, or that there are none of it."""
    kinds = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}
    response.flags |= dns.flags.AA
    for version, kind in kinds.items():
        found = [each for each in addresses if ip_address(each).version == version]
        if found and question.rdtype in (kind, dns.rdatatype.ANY):
            # Not from text: parsing one takes longer than all the rest.
            records = [_ADDRESS[version](dns.rdataclass.IN, kind, each) for each in found]
            response.answer.append(dns.rrset.from_rdata_list(question.name, TTL_S, records))
    if not response.answer:
        response.authority.append(_authority(zone.domain))


def _nobody(response: dns.message.Message, zone: Zone) -> None:
    response.flags |= dns.flags.AA
    response.set_rcode(dns.rcode.NXDOMAIN)
    response.authority.append(_authority(zone.domain))


@lru_cache(maxsize=256)
def _authority(domain: str) -> dns.rrset.RRset:
    """Return the record that says how long to believe in nothing (RFC 2308)."""
    domain = domain or "internal"
    text = f"ns.{domain}. hostmaster.{domain}. 1 3600 600 86400 {NEGATIVE_TTL_S}"
    found: dns.rrset.RRset = dns.rrset.from_text(_name(domain), NEGATIVE_TTL_S, dns.rdataclass.IN, dns.rdatatype.SOA, text)
    return found


def _reverse(response: dns.message.Message, question: dns.rrset.RRset, zone: Zone) -> bool:
    """Answer who has an address of the VPC; False: it is none."""
    try:
        address = ip_address(dns.reversename.to_address(question.name))
    except _UNREADABLE:
        # Part of an address.
        return False
    if not zone.cidr or address not in ip_network(zone.cidr):
        return False
    hostname = zone.hostname(str(address))
    if not hostname or not zone.domain:
        _nobody(response, zone)
        return True
    response.flags |= dns.flags.AA
    if question.rdtype in (dns.rdatatype.PTR, dns.rdatatype.ANY):
        text = f"{hostname}.{zone.domain}."
        response.answer.append(dns.rrset.from_text(question.name, TTL_S, dns.rdataclass.IN, dns.rdatatype.PTR, text))
    else:
        response.authority.append(_authority(zone.domain))
    return True
