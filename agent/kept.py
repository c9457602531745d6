"""What stays on a node though it is no longer desired: pure rules over a ledger's objects (docs/decisions/0013).

Guests, volumes and images hold what people cannot get back: they stay until they were said to be `absent`. Networks, ports and
forwards hold nothing: they stay only as long as a guest that stays, or is desired, needs them. So a node that lost sight of a
guest's records keeps its guest running with its addresses, its DHCP and its metadata.

A volume of a shared pool is kept there, not here: whoever is told no more that he administers it lets go of it, as another one
does. Only a restored store may know nothing of it: then it is unknown like a volume that is here, until somebody decides.

Forwards and peers lead to guests of other nodes: whether those still exist is for the controller to say, so they go with its
word. Only a restored store (a new epoch) may know less than there is: then those stay that nothing desired contradicts, until
it says that all nodes were heard and everything is decided.
"""

from __future__ import annotations

from collections.abc import Mapping

from cairn.proto.addresses import addresses_of
from cairn.proto.v1.agent_pb2 import Desired, DesiredForward, DesiredPeer, DesiredPort, DesiredVm, Upsert

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
    networks = [f"network/{card.vpc}"] if f"network/{card.vpc}" in unknown else []
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
    while gone := [key for key in found if not stays(key, desired, found)]:
        for key in gone:
            del found[key]
    return found


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
