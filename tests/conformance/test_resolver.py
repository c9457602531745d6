"""The resolver as guests find it, in real namespaces: names of their network, others through the node, over UDP and TCP."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rrset
import pytest
from cairn.net.base import Wanted
from cairn.net.names import Named

from tests.conformance.net_kit import missing
from tests.conformance.test_dataplane_services import ONE, TWIN, TWO, A, Site, site

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(missing()), reason=missing())]

GATEWAY, UPSTREAM = "10.0.1.1", "127.0.53.53"
HOME = "home.cairn.internal."


@contextmanager
def outside() -> Iterator[list[str]]:
    """A resolver outside of all networks that knows every name; yields what it was asked."""
    asked: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind((UPSTREAM, 53))

        def serve() -> None:
            while True:
                data, source = own.recvfrom(4096)
                if not data:
                    return
                query = dns.message.from_wire(data)
                asked.append(query.question[0].to_text())
                answer = dns.message.make_response(query)
                answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "198.51.100.7"))
                own.sendto(answer.to_wire(), source)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            own.sendto(b"", (UPSTREAM, 53))
            thread.join()


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {UPSTREAM}\n")
    return path


async def named(here: Site) -> None:
    for vpc in (ONE, TWO):
        here.wanted.networks[vpc.id].domain = HOME.rstrip(".")
    await here.services.update(here.wanted, here.vms)
    here.services.named(f"port/{A.id}", Named(ONE.id, "web", ("10.0.1.11",)))
    here.services.named("forward/far", Named(ONE.id, "db", ("10.0.1.21",)))
    here.services.named(f"port/{TWIN.id}", Named(TWO.id, "other", ("10.0.1.11",)))


def ask(name: str, kind: str = "A", how: Callable[..., Any] = dns.query.udp) -> tuple[int, list[str]]:
    query = dns.message.make_query(name, kind)
    answer = how(query, GATEWAY, timeout=5)
    assert answer.id == query.id
    return answer.rcode(), [str(record) for rrset in answer.answer for record in rrset]


@pytest.mark.parametrize("how", [dns.query.udp, dns.query.tcp], ids=["udp", "tcp"])
async def test_guests_find_each_other_by_name(how: Callable[..., Any], resolv_conf: Path) -> None:
    async with site(resolv_conf) as here:
        await named(here)
        assert await here.inside(A, lambda: ask(f"db.{HOME}", how=how)) == (0, ["10.0.1.21"])
        assert await here.inside(A, lambda: ask("db.", how=how)) == (0, ["10.0.1.21"])
        assert await here.inside(A, lambda: ask("21.1.0.10.in-addr.arpa.", "PTR", how)) == (0, [f"db.{HOME}"])
        assert await here.inside(TWIN, lambda: ask(f"db.{HOME}", how=how)) == (dns.rcode.NXDOMAIN, [])
        assert await here.inside(TWIN, lambda: ask(f"other.{HOME}", how=how)) == (0, ["10.0.1.11"])
        here.services.named("forward/far", None)
        assert await here.inside(A, lambda: ask(f"db.{HOME}", how=how)) == (dns.rcode.NXDOMAIN, [])


async def test_others_are_asked_through_the_node(resolv_conf: Path) -> None:
    async with site(resolv_conf) as here:
        await named(here)
        with outside() as asked:
            assert await here.inside(A, lambda: ask("example.org.")) == (0, ["198.51.100.7"])
            assert await here.inside(A, lambda: ask(f"nobody.{HOME}")) == (dns.rcode.NXDOMAIN, [])
        assert asked == ["example.org. IN A"]
        assert await here.inside(A, lambda: ask("example.org.")) == (dns.rcode.SERVFAIL, []), "and when nobody answers"


def flood(seed: int, packets: int) -> None:
    """Send what once were questions, as fast as it goes."""
    rng, wire = random.Random(seed), dns.message.make_query(f"db.{HOME}", "A", use_edns=0).to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        for _ in range(packets):
            data = bytearray(wire)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            own.sendto(bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.2 else data), (GATEWAY, 53))


async def test_a_guest_that_floods_it_spoils_only_its_own(resolv_conf: Path) -> None:
    async with site(resolv_conf) as here:
        await named(here)
        await here.inside(A, lambda: flood(1, 4000))
        assert await here.inside(TWIN, lambda: ask(f"other.{HOME}")) == (0, ["10.0.1.11"])

        def patient() -> tuple[int, list[str]]:
            for _ in range(10):
                try:
                    query = dns.message.make_query("db.", "A")
                    answer = dns.query.udp(query, GATEWAY, timeout=1)
                    return answer.rcode(), [str(record) for rrset in answer.answer for record in rrset]
                except dns.exception.Timeout:
                    continue
            return -1, []

        assert await here.inside(A, patient) == (0, ["10.0.1.21"])


async def test_half_a_question_over_tcp_and_too_many_connections(resolv_conf: Path) -> None:
    async with site(resolv_conf) as here:
        await named(here)

        def greedy() -> tuple[int, bytes]:
            """Return how many connections were ended at once, and what a length beyond all bounds gets."""
            held = [socket.create_connection((GATEWAY, 53), timeout=5) for _ in range(12)]
            ended = 0
            for each in held[8:]:
                ended += each.recv(1) == b""
            held[0].sendall(b"\xff\xff" + bytes(100))
            answer = held[0].recv(10)
            for each in held:
                each.close()
            return ended, answer

        assert await here.inside(A, greedy) == (4, b"")
        assert await here.inside(A, lambda: ask("db.", how=dns.query.tcp)) == (0, ["10.0.1.21"])


async def test_who_is_no_guest_of_it_hears_nothing(resolv_conf: Path) -> None:
    async with site(resolv_conf) as here:
        await named(here)
        wanted = Wanted(networks=here.wanted.networks)
        await here.services.update(wanted, {})

        def unheard() -> bool:
            try:
                dns.query.udp(dns.message.make_query("db.", "A"), GATEWAY, timeout=0.5)
            except dns.exception.Timeout:
                return True
            return False

        assert await here.inside(A, unheard)


async def test_a_connection_ends_with_its_network(resolv_conf: Path) -> None:
    """It would hold the namespace until it idles out."""
    async with site(resolv_conf) as here:
        await named(here)
        held = await here.inside(A, lambda: socket.create_connection((GATEWAY, 53), timeout=5))
        wire = dns.message.make_query("db.", "A").to_wire()

        def ask_there() -> bytes:
            held.sendall(len(wire).to_bytes(2, "big") + wire)
            return held.recv(2000)

        assert len(await here.inside(A, ask_there)) > 12
        await here.services.update(Wanted(), {})
        assert await here.inside(A, lambda: held.recv(1)) == b""
        held.close()
