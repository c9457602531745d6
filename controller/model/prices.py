"""What usage costs: which price list holds when, for whom, and what it makes of amounts. Pure.

    held = Held(view_or_lists)
    held.list_at(project, us)                 # the list that holds for a project at a moment; None: none does
    cost(price_of(list, "volume.local"), used, more)    # of `more`, on top of what was used in the month before it

A list of a project's own comes before those of all; of several that have begun the one that began last. Prices are decimals,
and amounts whole numbers of unit-microseconds, so a cost is exact: it is rounded once, where it is shown.

Rejected: prices in each object (a change of prices would be a change of all objects), floating point (bills are added up).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import pairwise
from typing import Final

from cairn.controller.model.usage_days import DAY_US
from cairn.controller.store.base import View
from cairn.controller.store.sums import VOLUME_BYTES
from cairn.proto import kinds
from cairn.proto.v1.price_list_pb2 import Price, PriceList

CPU: Final = "cpu"
MEMORY: Final = "memory"
IMAGE: Final = "image"
VOLUME: Final = "volume"
GIB: Final = 1 << 30
_SECOND_US: Final = 1_000_000
_HOUR_US: Final = 3_600 * _SECOND_US
_DAY_S: Final = 86_400
# What quotas call it -> what prices call it, and how much of it is one unit.
_UNITS: Final[Mapping[str, tuple[str, int]]] = {"cpus": (CPU, 1), "memory_bytes": (MEMORY, GIB), "image_bytes": (IMAGE, GIB)}


def is_priced(text: str) -> bool:
    """Tell whether that can have a price."""
    return text in (CPU, MEMORY, IMAGE, VOLUME) or (text.startswith(f"{VOLUME}.") and len(text) > len(VOLUME) + 1)


def decimal(text: str) -> Decimal | None:
    """Return a price; None: it is none."""
    try:
        found = Decimal(text)
    except InvalidOperation:
        return None
    exponent = found.as_tuple().exponent
    fits = isinstance(exponent, int) and -18 <= exponent <= 0
    return found if fits and 0 <= found < 1_000_000 else None


class Held:
    """Which price list holds when."""

    def __init__(self, lists: Iterable[PriceList]) -> None:
        self._of: dict[str, list[tuple[int, int, PriceList]]] = {}
        for each in lists:
            began = each.spec.valid_from.ToMicroseconds(), each.create_time.ToMicroseconds()
            self._of.setdefault(each.spec.project, []).append((*began, each))
        for found in self._of.values():
            found.sort(key=lambda each: (each[0], each[1], each[2].id))

    def list_at(self, project: str, us: int) -> PriceList | None:
        """Return the list that holds for a project at a moment; None: none does."""
        for owner in (project, ""):
            begun = [each for began_us, _, each in self._of.get(owner, ()) if began_us <= us]
            if begun:
                return begun[-1]
        return None

    def moments(self, begin_us: int, end_us: int) -> list[int]:
        """Return when any list begins to hold within a time, sorted."""
        begins = {began_us for found in self._of.values() for began_us, _, _ in found}
        return sorted(each for each in begins if begin_us < each < end_us)

    def __bool__(self) -> bool:
        return bool(self._of)


def held(view: View) -> Held:
    """Return which lists there are."""
    return view.recall("price lists", (kinds.PRICE_LIST,), lambda: Held(view.all(kinds.PRICE_LIST)))


def price_of(prices: PriceList, item: str) -> Price | None:
    """Return the price of something; that of all volumes where a type has none of its own."""
    by_name = {each.of: each for each in prices.spec.prices}
    return by_name.get(item) or (by_name.get(VOLUME) if item.startswith(f"{VOLUME}.") else None)


def cost(price: Price, used: Fraction, more: Fraction) -> Fraction:
    """Return what `more` costs when so much was used in the month before it; both in unit-microseconds."""
    total, tiers = Fraction(0), list(price.tiers)
    for at, tier in enumerate(tiers):
        first, last = max(used, Fraction(tier.from_hours * _HOUR_US)), used + more
        if at + 1 < len(tiers):
            last = min(last, Fraction(tiers[at + 1].from_hours * _HOUR_US))
        if last > first:
            total += Fraction(Decimal(tier.per_second)) * (last - first) / _SECOND_US
    return total


def text(amount: Fraction, digits: int) -> str:
    """Return an amount as a decimal, rounded half up."""
    scaled = amount * 10**digits
    whole = (scaled.numerator * 2 + scaled.denominator) // (scaled.denominator * 2)
    shown = f"{whole:0{digits + 1}d}"
    return f"{shown[:-digits]}.{shown[-digits:]}" if digits else shown


def a_day(prices: PriceList, amounts: Mapping[str, int]) -> Fraction:
    """Return what amounts, by the names of quotas, cost in a day while all of it runs, by first tiers."""
    total = Fraction(0)
    for name, amount in amounts.items():
        item, unit = _UNITS.get(name, ("", 1))
        if name.startswith(VOLUME_BYTES):
            item, unit = f"{VOLUME}.{name.removeprefix(VOLUME_BYTES)}", GIB
        price = price_of(prices, item) if item else None
        if price is not None and price.tiers:
            total += Fraction(amount, unit) * Fraction(Decimal(price.tiers[0].per_second)) * _DAY_S
    return total


def about(prices: PriceList, amounts: Mapping[str, int]) -> str:
    """Return what a plan would cost, as a phrase; empty: nothing."""
    much = a_day(prices, amounts)
    if not much:
        return ""
    digits = 2
    while digits < 8 and abs(much) * 10**digits < 10:
        digits += 1
    return f"about {'-' if much < 0 else ''}{text(abs(much), digits)} {prices.spec.currency} a day while it runs"


def first_of_month(day: int) -> int:
    """Return the first day of a day's month."""
    return day // 100 * 100 + 1


def whole_day(us: int) -> bool:
    """Tell whether a moment is the beginning of a day."""
    return us % DAY_US == 0


def in_order(tiers: Sequence[int]) -> bool:
    """Tell whether tiers begin at 0 and go up."""
    return bool(tiers) and tiers[0] == 0 and all(first < second for first, second in pairwise(tiers))
