"""What stays on a node though it is no longer desired: pure rules over a ledger's objects (docs/decisions/0013).

Guests, volumes and images hold what people cannot get back: they stay until they were said to be `absent`. Networks, ports and
forwards hold nothing: they stay only as long as a guest that stays, or is desired, needs them. So a node that lost sight of a
guest's records keeps its guest running with its addresses, its DHCP and its metadata.

A volume of a shared pool is kept there, not here: whoever is told no more that he administers it lets go of it, as another one
does. Only a restored store may know nothing of it: then it is unknown like a volume that is here, until somebody decides.

The network of a VPC may be desired without a subnet that kept cards, here or elsewhere, are in: one that a restored store does
not know. Such subnets stay for them beside it, as "subnets/<vpc id>", unless the VPC gave their place to another one.

Forwards and peers lead to guests of other nodes: whether those still exist is for the controller to say, so they go with its
word. Only a restored store (a new epoch) may know less than there is: then those stay that nothing desired contradicts, until
it says that all nodes were heard and everything is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cairn.net.ipam import network_of
from cairn.proto.addresses import addresses_of
from cairn.proto.v1.agent_pb2 import (
    Desired,
    DesiredForward,
    DesiredNetwork,
    DesiredPeer,
    DesiredPort,
    DesiredSubnet,
    DesiredVm,
    Upsert,
)

# Key of subnets that a network lacks, before the id of its VPC.
SUBNETS: Final = "subnets/"
Objects = Mapping[str, Upsert]


def stays(key: str, desired: Objects, unknown: Objects) -> bool:
    """Tell whether an unknown object stays, as long as everything else does."""
    object = unknown[key].object
    match object.WhichOneof("object"):
        case "vm":
            return not object.vm.absent
        case "volume":
            return not object.volume.absent and not object.volume.elsewhere
        case "image":
            return not object.image.absent
        case "port":
            return _is_card(object.port, _last(f"vm/{object.port.vm}", desired, unknown))
        case "network" if key.startswith(SUBNETS):
            lacks = {subnet.id for subnet in object.network.subnets} - _subnets(_last(_network_key(key), desired, unknown))
            return any(_subnet(each.object) in lacks for held in (desired, unknown) for each in held.values())
        case "network":
            ports = (each.object.port for held in (desired, unknown) for each in held.values() if each.object.HasField("port"))
            return any(port.vpc == object.network.vpc for port in ports)
        case "forward":
            return _is_undisputed(object.forward, desired, unknown)
        case "peer":
            return _is_apart(object.peer, desired, unknown)
        case _:
            return False


def concerned(changed: Desired, unknown: Objects) -> list[str]:
    """Return which unknown objects may stay no longer now that this one came, changed or went."""
    kind, each = changed.WhichOneof("object"), changed.vm.id
    if kind == "vm":
        return [key for key, held in unknown.items() if held.object.port.vm == each and each]
    if kind == "network":
        vpc = changed.network.vpc
        return [key for key, held in unknown.items() if leads_elsewhere(held.object) and _vpc(held.object) == vpc]
    if kind == "peer":
        return [key for key, held in unknown.items() if held.object.peer.transit_address == changed.peer.transit_address]
    if kind not in ("port", "forward"):
        return []
    card = changed.port if kind == "port" else changed.forward
    networks = [key for key in (f"network/{card.vpc}", SUBNETS + card.vpc) if key in unknown]
    return networks + [key for key, held in unknown.items() if _places(held.object.forward) & _places(card)]


def left_over(
    before: Objects, unknown: Objects, desired: Objects, overruled: Objects, *, restored: bool, settled: bool
) -> dict[str, Upsert]:
    """Return what is unknown after a snapshot. before: what was desired, overruled: of that, what a restored store contradicts.

    restored: it is the first of a store made from a backup; settled: everything is decided that such a store does not know.
    """
    left = {**unknown, **before}
    found = {key: each for key, each in left.items() if key not in desired}
    if not restored:
        stay = unknown.keys() if not settled else frozenset[str]()
        known_worse = unknown.keys() | overruled.keys()
        found = {key: each for key, each in found.items() if key in stay or not leads_elsewhere(each.object)}
        found = {key: each for key, each in found.items() if key in known_worse or not is_administered(each.object)}
    found = {key: each for key, each in found.items() if not key.startswith(SUBNETS)}
    while gone := [key for key in found if not stays(key, desired, found)]:
        for key in gone:
            del found[key]
    for vpc, needed in sorted(_cards(found).items()):
        key = f"network/{vpc}"
        sources = [held for held in (before.get(key), unknown.get(key), unknown.get(SUBNETS + vpc)) if held is not None]
        if (lacks := lacking(vpc, needed, sources, _last(key, desired, found))) is not None:
            found[lacks.key] = lacks
    return found


def subnets_needed(vpc: str, unknown: Objects) -> set[str]:
    """Return the subnets of a VPC that unknown cards are in, here or elsewhere."""
    return _cards(unknown).get(vpc, set())


def lacking(vpc: str, needed: set[str], sources: Iterable[Upsert], network: Desired | None) -> Upsert | None:
    """Return those of the needed subnets that the network of their VPC, as it is in force, lacks; None: none that is known of.

    sources: what was said of that network, the best first.
    """
    needed = needed - _subnets(network)
    result = Upsert(key=SUBNETS + vpc)
    for source in sources if network is not None else ():
        for subnet in source.object.network.subnets:
            if subnet.id not in needed:
                continue
            needed.discard(subnet.id)
            if not result.object.HasField("network"):
                result.version.CopyFrom(source.version)
                result.object.network.CopyFrom(source.object.network)
                result.object.network.ClearField("subnets")
            result.object.network.subnets.append(subnet)
    return result if result.object.network.subnets else None


def _cards(unknown: Objects) -> dict[str, set[str]]:
    """Return the subnets that unknown cards are in, by VPC."""
    found: dict[str, set[str]] = {}
    for each in unknown.values():
        if vpc := each.object.port.vpc or each.object.forward.vpc:
            found.setdefault(vpc, set()).add(_subnet(each.object))
    return found


def _subnet(card: Desired) -> str:
    return card.port.subnet or card.forward.subnet


def _network_key(key: str) -> str:
    return f"network/{key.removeprefix(SUBNETS)}"


def _subnets(network: Desired | None) -> set[str]:
    return {subnet.id for subnet in network.network.subnets} if network is not None else set()


def with_subnets(network: DesiredNetwork, more: Iterable[DesiredSubnet]) -> DesiredNetwork:
    """Return a network with subnets it lacks, but for those whose identifier or addresses it has given to another one."""
    result = DesiredNetwork()
    result.CopyFrom(network)
    for subnet in more:
        if not any(_collide(subnet, other) for other in network.subnets):
            result.subnets.append(subnet)
    return result


def _collide(one: DesiredSubnet, other: DesiredSubnet) -> bool:
    return one.id == other.id or one.vni == other.vni or network_of(one.cidr).overlaps(network_of(other.cidr))


def _last(key: str, desired: Objects, unknown: Objects) -> Desired | None:
    held = desired.get(key) or unknown.get(key)
    return held.object if held is not None else None


def _is_card(port: DesiredPort, owner: Desired | None) -> bool:
    vm = owner.vm if owner is not None else DesiredVm(absent=True)
    return not vm.absent and any(nic.port == port.id for nic in vm.nics)


def _is_undisputed(forward: DesiredForward, desired: Objects, unknown: Objects) -> bool:
    """Whether its network is here, and nothing desired has an address of its."""
    if _last(f"network/{forward.vpc}", desired, unknown) is None:
        return False
    places = _places(forward)
    return not any(places & (_places(each.object.port) | _places(each.object.forward)) for each in desired.values())


def leads_elsewhere(object: Desired) -> bool:
    """Tell whether an object is about another node."""
    return object.HasField("forward") or object.HasField("peer")


def is_administered(object: Desired) -> bool:
    """Tell whether an object is a volume that lives in a shared pool, which this node only administers."""
    return bool(object.volume.generation)


def _vpc(object: Desired) -> str:
    return object.forward.vpc or object.peer.vpc


def _is_apart(peer: DesiredPeer, desired: Objects, unknown: Objects) -> bool:
    """Whether its network is here, and nothing desired is reached by its address."""
    if _last(f"network/{peer.vpc}", desired, unknown) is None:
        return False
    place = peer.vpc, peer.transit_address
    return all(place != (each.object.peer.vpc, each.object.peer.transit_address) for each in desired.values())


def _places(card: DesiredPort | DesiredForward) -> set[tuple[str, str, str]]:
    return {(card.vpc, card.subnet, address) for address in addresses_of(card)}
