"""Addresses: each port one, no two the same, whoever decides in whatever order."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
from cairn.controller.reconcilers import port_books
from cairn.controller.reconcilers.ports import PORTS_MAX, Ports
from cairn.controller.runtime import check_writers
from cairn.controller.store.base import OPERATIONS_MAX, Conflict, Txn, View
from cairn.proto import kinds
from cairn.proto.ids import mac_of
from cairn.proto.v1.port_pb2 import AddressClaim
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.cloud_kit import NOW, Cloud

CIDRS = ("10.1.1.0/29", "10.1.2.0/28")


def addresses(cloud: Cloud) -> dict[str, str]:
    return {binding.port: binding.address for binding in cloud.view.all(kinds.PORT_BINDING)}


def subnet_of(cloud: Cloud, cidr: str = CIDRS[0]) -> str:
    return cloud.subnet("blue", cloud.vpc("v"), cidr)


def test_lowest_free_in_the_order_they_were_made() -> None:
    cloud = Cloud()
    subnet = subnet_of(cloud)
    first, second = cloud.port("z", subnet), cloud.port("a", subnet)
    cloud.settle([Ports()])
    assert addresses(cloud) == {first: "10.1.1.2", second: "10.1.1.3"}
    binding = cloud.view.get(kinds.PORT_BINDING, first)
    assert binding is not None
    assert binding.mac == mac_of(first)
    assert binding.subnet == subnet


def test_asked_for_address_is_served_first() -> None:
    cloud = Cloud()
    subnet = subnet_of(cloud)
    any_, fixed = cloud.port("a", subnet), cloud.port("b", subnet, address="10.1.1.2")
    cloud.settle([Ports()])
    assert addresses(cloud) == {any_: "10.1.1.3", fixed: "10.1.1.2"}


@pytest.mark.parametrize(("address", "why"), [("10.1.1.1", "gateway"), ("10.9.9.9", "outside")])
def test_refused_address_says_why(address: str, why: str) -> None:
    cloud = Cloud()
    port = cloud.port("a", subnet_of(cloud), address=address)
    outcome = cloud.decide(Ports(), subnet := "vxnet-0000blue")
    binding = cloud.view.get(kinds.PORT_BINDING, port)
    assert binding is not None
    assert not binding.address
    assert why in binding.error
    assert [event.reason for event in outcome.events] == ["NoAddress"]
    assert cloud.decide(Ports(), subnet).txn is None, "the same reason is not written twice"


def test_full_subnet_says_so_and_serves_when_one_is_freed() -> None:
    cloud = Cloud()
    subnet = subnet_of(cloud)
    ports = [cloud.port(f"p{i}", subnet) for i in range(6)]
    cloud.settle([Ports()])
    last = cloud.view.get(kinds.PORT_BINDING, ports[5])
    assert last is not None
    assert "no address is free in 10.1.1.0/29" in last.error
    cloud.delete(kinds.PORT, ports[2])
    cloud.settle([Ports()])
    assert ports[2] not in addresses(cloud)
    assert addresses(cloud)[ports[5]] == "10.1.1.4"


def test_many_ports_stay_within_one_transaction() -> None:
    cloud = Cloud()
    subnet = cloud.subnet("blue", cloud.vpc("v"), "10.1.0.0/20")
    for i in range(3 * PORTS_MAX):
        cloud.port(f"p{i}", subnet)
    outcome = Ports().reconcile(cloud.view, subnet, NOW)
    assert outcome.txn is not None
    assert outcome.txn.size <= OPERATIONS_MAX
    assert outcome.again_after_s == 0
    check_writers(Ports(), outcome.txn)
    cloud.settle([Ports()])
    assert len(set(addresses(cloud).values())) == 3 * PORTS_MAX


def test_two_controllers_conflict() -> None:
    cloud = Cloud()
    subnet = subnet_of(cloud)
    cloud.port("a", subnet)
    first, second = Ports().reconcile(cloud.view, subnet, NOW), Ports().reconcile(cloud.view, subnet, NOW)
    assert first.txn is not None
    assert second.txn is not None
    cloud.commit(first.txn)
    with pytest.raises(Conflict):
        cloud.commit(second.txn)


def test_keys_of_a_port_that_is_gone() -> None:
    cloud = Cloud()
    subnet = subnet_of(cloud)
    port = cloud.port("a", subnet)
    cloud.settle([Ports()])
    cloud.delete(kinds.PORT, port)
    assert list(Ports().keys(cloud.view, kinds.PORT, port)) == [subnet]


class Interleaved(RuleBasedStateMachine):
    """Several deciders hold decisions made at different times and commit them in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = Cloud()
        vpc = self.cloud.vpc("v")
        self.subnets = [self.cloud.subnet(f"s{i}", vpc, cidr) for i, cidr in enumerate(CIDRS)]
        self.held: list[Txn] = []
        self.made = 0

    @rule(which=st.integers(0, 1), address=st.sampled_from(["", "", "", "10.1.1.2", "10.1.2.9"]))
    def create(self, which: int, address: str) -> None:
        self.made += 1
        self.cloud.port(f"p{self.made}", self.subnets[which], address=address)

    @precondition(lambda self: self.cloud.view.count(kinds.PORT) > 0)
    @rule(pick=st.integers(0))
    def remove(self, pick: int) -> None:
        ports = sorted(self.cloud.view.ids(kinds.PORT))
        self.cloud.delete(kinds.PORT, ports[pick % len(ports)])

    @rule(which=st.integers(0, 1))
    def decide(self, which: int) -> None:
        outcome = Ports().reconcile(self.cloud.view, self.subnets[which], NOW)
        if outcome.txn:
            self.held.append(outcome.txn)

    @precondition(lambda self: bool(self.held))
    @rule(pick=st.integers(0))
    def commit(self, pick: int) -> None:
        txn = self.held.pop(pick % len(self.held))
        try:
            self.cloud.commit(txn)
        except Conflict:
            return

    @invariant()
    def no_address_twice(self) -> None:
        taken = [(binding.subnet, binding.address) for binding in self.cloud.view.all(kinds.PORT_BINDING) if binding.address]
        assert len(taken) == len(set(taken))

    @invariant()
    def each_binding_has_its_claim(self) -> None:
        claims = {(claim.subnet, claim.address): claim.port for claim in self.cloud.view.all(kinds.ADDRESS)}
        for binding in self.cloud.view.all(kinds.PORT_BINDING):
            if binding.address:
                assert claims[binding.subnet, binding.address] == binding.port

    def teardown(self) -> None:
        self.cloud.settle([Ports()])
        ports = set(self.cloud.view.ids(kinds.PORT))
        assert set(self.cloud.view.ids(kinds.PORT_BINDING)) == ports
        held = {claim.port for claim in self.cloud.view.all(kinds.ADDRESS)}
        assert held == {id for id, address in addresses(self.cloud).items() if address}


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(30))
def test_led_from_view_to_fork_and_back_it_decides_as_one_that_looks_at_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_books, "STEP", (200, 3, 1)[seed % 3])
    draw, cloud, led = random.Random(seed), Cloud(), Ports()
    vpc = cloud.vpc("v")
    subnets = [cloud.subnet(f"s{number}", vpc, cidr) for number, cidr in enumerate(CIDRS)]
    made = list[str]()
    led.follow(cloud.view, cloud.take())
    for step in range(60):
        for _ in range(draw.randrange(4)):
            act = draw.random()
            if act < 0.5:
                address = draw.choice(["", "", "10.1.1.3", "10.1.2.4"])
                made.append(cloud.port(f"p{len(made)}", draw.choice(subnets), address=address))
            elif act < 0.75 and made:
                cloud.delete(kinds.PORT, made.pop(draw.randrange(len(made))))
            elif act < 0.85:
                claim = AddressClaim(subnet=subnets[1], address="10.1.2.9", port="nic-0000gone")
                cloud.put(kinds.ADDRESS, f"{subnets[1]}/10.1.2.9", claim)
            elif act < 0.9 and addresses(cloud):
                # Somebody restored half of it: the next scan finds it.
                cloud.delete(kinds.PORT_BINDING, draw.choice(sorted(addresses(cloud))))
                list(led.all_keys(cloud.view))
        if draw.random() < 0.1:
            list(led.all_keys(cloud.view))
        led.follow(cloud.view, cloud.take())
        view: View = cloud.view
        touched = list[tuple[Any, str]]()
        for subnet in draw.sample(subnets, 2):
            while not led._books.at(view, subnet).read:
                continue
            outcome, other = led.reconcile(view, subnet, NOW), Ports().reconcile(view, subnet, NOW)
            assert outcome == other, f"step {step}"
            if outcome.txn is None:
                continue
            view = view.fork(outcome.txn)
            written = [kinds.split(key) for key in (*outcome.txn.puts, *outcome.txn.deletes)]
            touched += written
            led.follow(view, written)
            if draw.random() < 0.6:
                with suppress(Conflict):
                    # It was decided on what may not have been committed.
                    cloud.commit(outcome.txn)
                led.follow(cloud.view, [*touched, *cloud.take()])
                view = cloud.view
        led.follow(cloud.view, touched)


def large(count: int) -> tuple[Cloud, str]:
    """A subnet with so many cards, all of them with addresses."""
    cloud = Cloud()
    subnet = cloud.subnet("blue", cloud.vpc("v", "10.0.0.0/8"), "10.1.0.0/16")
    for number in range(count):
        cloud.port(f"p{number}", subnet)
    cloud.settle([Ports()], rounds=200)
    cloud.take()
    return cloud, subnet


def test_a_large_subnet_is_read_in_steps_first_and_at_each_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, subnet = large(500)
    asked, get = [0], type(cloud.view).get
    monkeypatch.setattr(type(cloud.view), "get", lambda *given: asked.__setitem__(0, asked[0] + 1) or get(*given))
    led = Ports()
    led.follow(cloud.view, ())
    for scan in range(3):
        assert set(led.all_keys(cloud.view)) == {subnet}
        looks = 0
        while True:
            asked[0], looks = 0, looks + 1
            outcome = led.reconcile(cloud.view, subnet, NOW)
            assert asked[0] <= 6 * port_books.STEP, f"scan {scan}"
            if outcome.again_after_s is None:
                break
        # Ports, their bindings, claims, and what the book has of those.
        assert 1000 // port_books.STEP < looks <= 1 + 2000 // port_books.STEP, f"scan {scan}"


def test_while_a_subnet_is_read_again_it_is_served() -> None:
    cloud, subnet = large(300)
    led = Ports()
    led.follow(cloud.view, ())
    while led.reconcile(cloud.view, subnet, NOW).again_after_s is not None:
        continue
    list(led.all_keys(cloud.view))
    cloud.port("late", subnet)
    led.follow(cloud.view, cloud.take())
    outcome = led.reconcile(cloud.view, subnet, NOW)
    assert outcome.txn is not None
    assert outcome.again_after_s == 0, "the rest is yet to be read"


def test_what_nobody_tells_of_is_found_by_the_scan_of_a_large_subnet() -> None:
    cloud, subnet = large(300)
    led = Ports()
    led.follow(cloud.view, ())
    while led.reconcile(cloud.view, subnet, NOW).again_after_s is not None:
        continue
    lost = cloud.stored(kinds.PORT_BINDING, "nic-00000p77")
    cloud.delete(kinds.PORT, "nic-00000p77")
    cloud.delete(kinds.PORT_BINDING, "nic-00000p77")
    led.follow(cloud.view, cloud.take())
    claim = f"{subnet}/{lost.address}"
    assert led.reconcile(cloud.view, subnet, NOW).txn is None, "nothing says whose address it was"
    list(led.all_keys(cloud.view))
    for _ in range(20):
        outcome = led.reconcile(cloud.view, subnet, NOW)
        if outcome.txn is not None:
            break
    assert outcome.txn is not None
    assert kinds.ADDRESS.key(claim) in outcome.txn.deletes


def test_books_nobody_looks_at_are_forgotten() -> None:
    cloud, subnet = large(3)
    led = Ports()
    led.follow(cloud.view, ())
    led.reconcile(cloud.view, subnet, NOW)
    for _ in range(2):
        list(led.all_keys(cloud.view))
    assert not led._books._books
    led.follow(cloud.view, [(kinds.PORT, f"nic-{number}") for number in range(100)])
    assert len(led._books._changed) == 0
