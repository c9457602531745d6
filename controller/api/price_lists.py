"""Price lists: what a second of what is counted costs, from a day on. What holds already is never changed: old reports stay."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Final

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.authorise import caller_of
from cairn.controller.api.core import Core
from cairn.controller.api.decision import Decided
from cairn.controller.api.masks import UpdateRules
from cairn.controller.api.objects import addressed, begin, looked_up, updated
from cairn.controller.model.permits import Caller, Verb
from cairn.controller.model.prices import decimal, in_order, is_priced, whole_day
from cairn.controller.model.usage_days import us_of
from cairn.controller.store.base import Record, Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, Invalid
from cairn.proto.seams import moment
from cairn.proto.v1 import price_list_pb2, price_list_pb2_grpc
from cairn.proto.v1.price_list_pb2 import PriceList, PriceListSpec

PRICES_MAX: Final = 64
TIERS_MAX: Final = 16
HOURS_MAX: Final = 1 << 40
_CURRENCY: Final = re.compile("[A-Za-z]{1,8}")
_OF: Final = "is no price: give cpu, memory, image, volume or volume.TYPE"
RULES: Final = UpdateRules(
    mutable=("name", "labels", "spec.description", "spec.currency", "spec.valid_from", "spec.prices"),
    immutable=("spec.project",),
)


class PriceListService(price_list_pb2_grpc.PriceListServiceServicer):
    """PriceListService of proto/v1/price_list.proto."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreatePriceList(self, request: price_list_pb2.CreatePriceListRequest, context: Any) -> PriceList:
        """Make one; it may hold from a day that is past, so that the beginning has prices too."""

        def decide(view: View, caller: Caller) -> Decided[PriceList]:
            decided, made = begin(view, caller, self._core, nouns.PRICE_LIST, request.price_list)
            made.spec.CopyFrom(request.price_list.spec)
            _check(made.spec)
            if made.spec.project:
                project = looked_up(view, caller, nouns.PROJECT, "", made.spec.project, "price_list.spec.project")
                made.spec.project = project.id
                decided.txn.check(kinds.PROJECT, project.id, view.revision_of(kinds.PROJECT, project.id))
            decided.txn.create(kinds.PRICE_LIST, made.id, made)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def GetPriceList(self, request: price_list_pb2.GetPriceListRequest, context: Any) -> PriceList:
        """Return one."""
        return await self._core.listings.get(caller_of(context), nouns.PRICE_LIST, request)

    async def ListPriceLists(
        self, request: price_list_pb2.ListPriceListsRequest, context: Any
    ) -> price_list_pb2.ListPriceListsResponse:
        """Return a page."""
        response = price_list_pb2.ListPriceListsResponse
        return await self._core.listings.list(caller_of(context), nouns.PRICE_LIST, request, response)

    async def UpdatePriceList(self, request: price_list_pb2.UpdatePriceListRequest, context: Any) -> PriceList:
        """Change one that does not hold yet; its name, labels and description at any time."""

        def amend(_view: View, _caller: Caller, _txn: Txn, new: PriceList, old: Record[PriceList]) -> None:
            _check(new.spec)
            if _priced(new.spec) != _priced(old.message.spec):
                self._refuse_held(old.message, "changed")
                self._refuse_held(new, "changed to")

        def decide(view: View, caller: Caller) -> Decided[PriceList]:
            decided, _, _ = updated(view, caller, self._core, nouns.PRICE_LIST, request, RULES, amend)
            return decided

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def DeletePriceList(self, request: price_list_pb2.DeletePriceListRequest, context: Any) -> PriceList:
        """Remove one; what it said of days that are past is gone from reports then."""

        def decide(view: View, caller: Caller) -> Decided[PriceList]:
            record = addressed(view, caller, nouns.PRICE_LIST, request, verb=Verb.DELETE)
            resolution.check_etag("etag", record, request.etag, required=False, title="price list")
            prices = record.message
            txn = Txn("api").check(kinds.PRICE_LIST, prices.id, record.mod_revision).delete(kinds.PRICE_LIST, prices.id)
            resolution.release(txn, view, nouns.PRICE_LIST, "", prices.name, prices.id)
            said = [("Deleted", f"price list {prices.name} was deleted")]
            erased = nouns.PRICE_LIST.project(view, record)
            return Decided(txn, nouns.PRICE_LIST, prices.id, prices.name, "", erased=erased, events=said)

        return await self._core.mutations.run(request, caller_of(context), decide)

    async def WatchPriceLists(
        self, request: price_list_pb2.WatchPriceListsRequest, context: Any
    ) -> AsyncIterator[price_list_pb2.WatchPriceListsResponse]:
        """Follow them."""
        response = price_list_pb2.WatchPriceListsResponse
        async for each in self._core.watches.watch(caller_of(context), nouns.PRICE_LIST, request, response):
            yield each

    def _refuse_held(self, prices: PriceList, what: str) -> None:
        if prices.spec.valid_from.ToMicroseconds() <= us_of(self._core.clock.now()):
            day = moment(prices.spec.valid_from)
            say = f"price list {prices.name!r} holds since {day:%Y-%m-%d}: what holds is not {what}; make another, valid later"
            raise BadState("price_list", prices.name, say)


def _priced(spec: PriceListSpec) -> bytes:
    """Return what of a list decides about costs."""
    bare = PriceListSpec()
    bare.CopyFrom(spec)
    bare.ClearField("description")
    return bare.SerializeToString(deterministic=True)


def _check(spec: PriceListSpec) -> None:
    """Raise Invalid unless a list can be added up by."""
    field = "price_list.spec"
    validation.description(f"{field}.description", spec.description)
    if not _CURRENCY.fullmatch(spec.currency):
        raise Invalid(f"{field}.currency", f"{spec.currency!r} is no currency: give 1 to 8 letters, for example CNY")
    try:
        begins_us = us_of(moment(spec.valid_from))
    except (ValueError, OverflowError) as error:
        raise Invalid(f"{field}.valid_from", "is no time") from error
    if not spec.HasField("valid_from") or not whole_day(begins_us):
        raise Invalid(f"{field}.valid_from", "is not the beginning of a day (UTC)")
    validation.at_most(f"{field}.prices", spec.prices, PRICES_MAX, "prices")
    if not spec.prices:
        raise Invalid(f"{field}.prices", "are none")
    seen = set[str]()
    for at, price in enumerate(spec.prices):
        where = f"{field}.prices[{at}]"
        if not is_priced(price.of) or price.of in seen:
            raise Invalid(f"{where}.of", f"{price.of!r} {_OF if price.of not in seen else 'has a price already'}")
        seen.add(price.of)
        validation.at_most(f"{where}.tiers", price.tiers, TIERS_MAX, "tiers")
        if not in_order([tier.from_hours for tier in price.tiers]) or price.tiers[-1].from_hours > HOURS_MAX:
            raise Invalid(f"{where}.tiers", "do not begin at 0 hours and go up from there")
        for tier in price.tiers:
            if decimal(tier.per_second) is None:
                say = f"{tier.per_second!r} is no price: a decimal of at most 18 digits behind the point, below a million"
                raise Invalid(f"{where}.tiers.per_second", say)
