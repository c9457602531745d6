"""cairn price: what usage costs, from when on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import Any

import click
from cairn.controller.cli.audit import moment_of
from cairn.controller.cli.client import Session
from cairn.controller.cli.commands import NounGroup
from cairn.controller.cli.failures import Failure
from cairn.controller.cli.noun import Noun, add_delete, add_list, add_show, perform
from cairn.controller.cli.output import Column, Detail


def _day(prices: Any) -> str:
    return f"{prices.spec.valid_from.ToDatetime(UTC):%Y-%m-%d}"


def _rows(prices: Any) -> Iterator[Detail]:
    yield "Description", prices.spec.description
    yield "For", prices.status.project_name or "all projects"
    yield "From", _day(prices)
    for price in prices.spec.prices:
        tiers = [_tier(tier, prices.spec.currency) for tier in price.tiers]
        yield price.of, tiers if len(tiers) > 1 else tiers[0]


def _tier(tier: Any, currency: str) -> str:
    after = f", from {tier.from_hours} hours of a month on" if tier.from_hours else ""
    return f"{tier.per_second} {currency} a second{after}"


NOUN = Noun(
    "price_list",
    "price_lists",
    "price",
    columns=[
        Column("NAME", lambda prices: prices.name),
        Column("FROM", _day),
        Column("FOR", lambda prices: prices.status.project_name or "all projects"),
        Column("CURRENCY", lambda prices: prices.spec.currency),
        Column("PRICES", lambda prices: len(prices.spec.prices), right=True),
        Column("ID", lambda prices: prices.id, wide=True),
        Column("DESCRIPTION", lambda prices: prices.spec.description, wide=True),
    ],
    details=_rows,
)
group = NounGroup("price", "What usage costs, from when on.")
add_list(group, NOUN)
add_show(group, NOUN)
add_delete(group, NOUN, help="Delete a price list: what it said of days that are past is in no report any more.")


@group.verb("create", changes=True)
@click.argument("name")
@click.option("--currency", required=True, metavar="CNY", help="What amounts are in.")
@click.option("--from", "since", required=True, metavar="DAY", help="From that day on (UTC): 2026-12-01.")
@click.option(
    "--price",
    "prices",
    multiple=True,
    required=True,
    metavar="OF=PRICE",
    help="For a second of a cpu, a GiB of memory, volume, volume.TYPE or image: cpu=0.0000014; with tiers by the hours a "
    "project used in the month: volume=0.00000003,720000:0.00000002; may be repeated.",
)
@click.option("--for", "project", default="", metavar="P", help="For this project alone.")
@click.option("--description", default="", help="One line about it.")
async def create(
    session: Session, name: str, currency: str, since: str, prices: tuple[str, ...], project: str, description: str
) -> None:
    """Make a price list: it holds from its day on, until a later one does."""
    from cairn.proto.v1.price_list_pb2 import CreatePriceListRequest, PriceList, PriceListSpec

    spec = PriceListSpec(currency=currency, project=project, description=description)
    spec.valid_from.FromDatetime(moment_of("from", since))
    for text in prices:
        _add(spec, text)
    await perform(session, NOUN, CreatePriceListRequest(price_list=PriceList(name=name, spec=spec)), None)


def _add(spec: Any, text: str) -> None:
    """Add one --price. Raises Failure."""
    of, _, said = text.partition("=")
    price = spec.prices.add(of=of)
    for number, tier in enumerate(said.split(",")):
        hours, between, per_second = tier.rpartition(":")
        if (number > 0) != bool(between) or (between and not hours.isdigit()):
            say = f"--price {text}: give OF=PRICE, or OF=PRICE,HOURS:PRICE,... for example volume=0.00000003,720000:0.00000002"
            raise Failure(say, usage=True)
        price.tiers.add(from_hours=int(hours or 0), per_second=per_second)
