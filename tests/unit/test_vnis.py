"""VXLAN identifiers: taken once, given back by whoever holds them."""

from __future__ import annotations

from cairn.controller.api.vnis import VNI_MIN, claim_vni, release_vni, vni_key
from cairn.controller.store.base import Txn
from cairn.controller.store.view import LiveView
from cairn.proto import kinds


def test_one_given_back_and_taken_in_one_commit_stands_on_what_it_was() -> None:
    """Decided one after the other and committed together, the second would have overwritten whatever is there then."""
    first = Txn("api")
    vni = claim_vni(first, LiveView(), "vpc-a")
    assert vni == VNI_MIN
    view = LiveView().fork(first)
    released = Txn("api")
    release_vni(released, view, vni, "vpc-b")
    assert not released, "another's"
    release_vni(released, view, vni, "vpc-a")
    taken = Txn("api")
    assert claim_vni(taken, view.fork(released), "vpc-c") == vni
    together = released.merge(taken)
    key = kinds.VNI.key(vni_key(vni))
    assert together.checks[key] == view.revision_of(kinds.VNI, vni_key(vni))
    assert key in together.puts
    assert key not in together.deletes
