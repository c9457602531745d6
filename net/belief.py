"""What the kernel holds, as last seen and as changed by us since, so that one change of a large network costs one change.

    belief = Belief(observed)                      # after a pass over everything that left nothing to do
    part = belief.part(wanted, forwards, ports)    # of what changed since: what plan_forwards needs, or None
    belief.did(plan_forwards(*part))               # what was done of it

Invariant: the plan of a part is the plan of everything, as long as nothing else has changed; what cannot be told from a part (a
network, a card that is there or whose TAP is, two cards with one address) is no part: then everything is looked at. Nobody
believes for long: who observes anew, after events, failures and now and then, makes a new belief. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from cairn.net.base import Action, Observed, Wanted
from cairn.net.plan import AddForward, RemoveForward
from cairn.proto.v1.agent_pb2 import DesiredForward, DesiredPort

# What two cards of a VPC must not share, else one's entries are the other's: an address or a MAC.
_Place = tuple[str, str]


class Belief:
    """See the module. `holds` is False once something was done that a part cannot tell the outcome of."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._forwards = dict(observed.forwards)
        self._places: Counter[_Place] = Counter()
        for forward in self._forwards.values():
            self._places.update(_places(forward.vpc, forward.mac, forward.addresses))
        for port in observed.ports.values():
            self._places.update(_places(port.vpc, port.mac, port.addresses))
        self.holds = True

    def part(self, wanted: Wanted, forwards: Collection[str], ports: Collection[str]) -> tuple[Wanted, Observed] | None:
        """Return what of wanted and observed these forwards and ports (by id) are about; None: look at everything."""
        if not self.holds or not all(self._is_apart(id, wanted.ports.get(id)) for id in ports):
            return None
        some = {id: wanted.forwards[id] for id in forwards if id in wanted.forwards}
        seen = {id: self._forwards[id] for id in forwards if id in self._forwards}
        vpcs = {forward.vpc for forward in (*some.values(), *seen.values())}
        if not vpcs <= wanted.networks.keys() & self._observed.networks.keys() - self._observed.incomplete:
            return None
        networks = {vpc: wanted.networks[vpc] for vpc in vpcs}
        return Wanted(networks, {}, some), Observed({vpc: self._observed.networks[vpc] for vpc in vpcs}, {}, seen)

    def _is_apart(self, id: str, port: DesiredPort | None) -> bool:
        """Whether a port has nothing in the kernel: no entry, and no TAP that could be bound."""
        if id in self._observed.ports:
            return False
        taps = self._observed.waiting_taps.union(*self._observed.stray_taps.values())
        return port is None or port.tap not in taps

    def did(self, actions: Iterable[Action]) -> None:
        """Take in what was done, in order."""
        for action in actions:
            match action:
                case AddForward(forward=forward):
                    self._take(forward.port, forward)
                case RemoveForward(forward=forward):
                    self._take(forward.port, None)
                case _:
                    self.holds = False

    def _take(self, id: str, forward: DesiredForward | None) -> None:
        before = self._forwards.pop(id, None)
        if before is not None:
            self._places.subtract(_places(before.vpc, before.mac, before.addresses))
        if forward is not None:
            self._forwards[id] = forward
            for place in _places(forward.vpc, forward.mac, forward.addresses):
                self._places[place] += 1
                self.holds = self.holds and self._places[place] == 1


def _places(vpc: str, mac: str, addresses: Iterable[str]) -> Mapping[_Place, int]:
    return Counter({(vpc, each): 1 for each in (mac, *addresses) if each})
