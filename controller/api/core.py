"""What the servicers of all nouns share, put together once by controller/app.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cairn.controller.api.decision import Views
from cairn.controller.api.feed import Feed
from cairn.controller.api.listing import Listings
from cairn.controller.api.mutation import Mutations
from cairn.controller.api.watch import Watches
from cairn.controller.archive import Archive
from cairn.controller.openid import HttpIdentities, Identities
from cairn.controller.standing import FencedStore, Standing
from cairn.controller.store.base import Store
from cairn.proto.pki import Authority
from cairn.proto.sealing import Seals
from cairn.proto.seams import Clock, Ids, Transport


@dataclass(frozen=True)
class Core:
    """The API's machinery."""

    store: FencedStore
    # The same without the fence: for restoring, which is what the fence is for.
    unfenced: Store
    standing: Standing
    cache: Views
    clock: Clock
    ids: Ids
    transport: Transport
    mutations: Mutations
    listings: Listings
    watches: Watches
    # Signs certificates; None: this controller holds no CA key.
    authority: Authority | None
    # PEM of the CA all trust.
    ca_pem: bytes
    # Endpoints a joining node enrols at.
    enrolment_endpoints: Callable[[], list[str]]
    # Of this program, for what it writes about itself.
    version: str
    # What keeps secrets.
    seals: Seals
    # This controller's files of the audit; None: it has no place for them.
    archive: Archive | None
    # What judges the tokens of identity providers.
    identities: Identities

    @classmethod
    def build(
        cls,
        store: Store,
        cache: Views,
        feed: Callable[[], Feed],
        clock: Clock,
        ids: Ids,
        transport: Transport,
        *,
        authority: Authority | None = None,
        ca_pem: bytes = b"",
        enrolment_endpoints: Callable[[], list[str]] = list,
        version: str = "",
        seals: Seals | None = None,
        name: str = "controller",
        archive: Archive | None = None,
        identities: Identities | None = None,
    ) -> Core:
        """Wire the parts together. store: as it is, without a fence; name: the controller's, and of its chain in the audit."""
        standing = Standing(cache)
        fenced = FencedStore(store, cache, standing, clock)
        mutations = Mutations(fenced, cache, clock, ids, name)
        listings = Listings(fenced, cache, mutations.freshen)
        watches = Watches(cache, feed, listings)
        return cls(
            fenced, store, standing, cache, clock, ids, transport, mutations, listings, watches, authority, ca_pem,
            enrolment_endpoints, version, seals or Seals(), archive, identities or HttpIdentities(clock),
        )  # fmt: skip
