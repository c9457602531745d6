"""Users make VPCs with subnets, VMs with cards in several of them, and remove what is unused; VPCs have the same addresses."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.sim.asked import AskedSubnet
from tests.sim.story import Event, Size, spread
from tests.sim.user import IMAGE, Code, User, pick


def draw(draw: random.Random, size: Size) -> Iterable[Event]:
    """One or two users with a VPC of their own, all with the same addresses."""
    for user in size.user_names[: draw.choice((1, 1, 2))]:
        for number in range(draw.choice((1, 2))):
            yield Event(round(draw.uniform(0, 5), 2), user, "make_vpc", (f"net-{user}-{number}", draw.choice((1, 2, 3))))
        for number, at_s in enumerate(spread(draw, size, size.rounds)):
            match draw.choice(("vm_in_subnets", "vm_in_subnets", "add_subnet", "overlap", "remove_subnet", "remove_vpc")):
                case "vm_in_subnets":
                    yield Event(
                        at_s, user, "vm_in_subnets", (f"net-vm-{user}-{number}", draw.randrange(8), draw.choice((1, 2)))
                    )
                case "add_subnet":
                    yield Event(at_s, user, "add_subnet", (draw.randrange(8), f"more-{user}-{number}", 100 + number))
                case act:
                    yield Event(at_s, user, act, (draw.randrange(8),))


async def make_vpc(user: User, name: str, count: int) -> None:
    """Make a VPC with some subnets."""
    await user.client.create_vpc(name, "10.7.0.0/16")
    for number in range(count):
        await _make(user, name, f"{name}-{number}", f"10.7.{number}.0/24")


async def add_subnet(user: User, index: int, name: str, number: int) -> None:
    """Add one to a VPC that is in use already."""
    subnet = pick(user.asked.subnets_of(user.name), index)
    if subnet is not None:
        await _make(user, subnet.vpc, name, f"10.7.{number}.0/24")


async def overlap(user: User, index: int) -> None:
    """Ask for addresses that another subnet has: refused."""
    subnet = pick(user.asked.subnets_of(user.name), index)
    if subnet is None:
        return
    made = user.client.create_subnet_in(subnet.vpc, f"{subnet.name}-x", "10.7.0.0/17")
    if await user.attempt(made, Code.INVALID_ARGUMENT) is not None:
        user.asked.contradict(f"{subnet.name} and another subnet of {subnet.vpc} have the same addresses")


async def vm_in_subnets(user: User, name: str, index: int, count: int) -> None:
    """Make a VM with a card in one subnet or in two."""
    mine = user.asked.subnets_of(user.name)
    chosen = [mine[(index + number) % len(mine)] for number in range(min(count, len(mine)))]
    if not chosen:
        return
    for subnet in chosen:
        subnet.used = True
    vm = await user.client.create_vm(name, image=IMAGE, subnets=[subnet.id for subnet in chosen], memory_mib=128)
    user.keep(vm, subnets=tuple(subnet.id for subnet in chosen))


async def remove_subnet(user: User, index: int) -> None:
    """Remove a subnet; refused while a VM has a card in it, or until such a VM is erased."""
    subnet = pick(user.asked.subnets_of(user.name), index)
    if subnet is None:
        return
    call = user.client.delete_subnet(subnet.id)
    if await (user.attempt(call, Code.FAILED_PRECONDITION) if subnet.used else call) is None:
        return
    del user.asked.subnets[subnet.id]
    for vm in user.asked.vms.values():
        if subnet.id in vm.subnets:
            user.asked.contradict(f"subnet {subnet.name} could be removed though {vm.name} ({vm.id}) has a card in it")


async def remove_vpc(user: User, index: int) -> None:
    """Remove a VPC; refused while it has subnets."""
    subnet = pick(user.asked.subnets_of(user.name), index)
    if subnet is not None and await user.attempt(user.client.delete_vpc(subnet.vpc), Code.FAILED_PRECONDITION) is not None:
        user.asked.contradict(f"VPC {subnet.vpc} could be removed though it has subnet {subnet.name}")


async def _make(user: User, vpc: str, name: str, cidr: str) -> None:
    made = await user.client.create_subnet_in(vpc, name, cidr)
    user.asked.subnets[made.id] = AskedSubnet(made.id, name, user.name, vpc)


ACTS = {
    "make_vpc": make_vpc,
    "add_subnet": add_subnet,
    "overlap": overlap,
    "vm_in_subnets": vm_in_subnets,
    "remove_subnet": remove_subnet,
    "remove_vpc": remove_vpc,
}
