"""What usage costs: which list holds, tiers by the month, and shares of rows that add up."""

from __future__ import annotations

from fractions import Fraction

from cairn.controller.model.prices import GIB, Held, a_day, about, cost, decimal, in_order, is_priced, price_of, text
from cairn.controller.model.usage_days import DAY_US, HOUR_US, bytes_of, day_begin_us
from cairn.controller.model.usage_report import Report, Window
from cairn.proto.v1.price_list_pb2 import Price, PriceList, PriceTier
from cairn.proto.v1.usage_pb2 import UsageDay, UsageGroup, UsageMonth, UsageOpen
from hypothesis import given
from hypothesis import strategies as st

DAY = 20261110
BEGIN_US = day_begin_us(DAY)


def prices(id: str = "pl-1", day: int = 20261101, project: str = "", currency: str = "CNY", **of: str) -> PriceList:
    """A list; of: price of a second, or "first,HOURS:then"."""
    made = PriceList(id=id, name=id)
    made.spec.currency, made.spec.project = currency, project
    made.spec.valid_from.FromMicroseconds(day_begin_us(day))
    for name, said in of.items():
        price = made.spec.prices.add(of=name.replace("__", "."))
        for tier in said.split(","):
            hours, _, per_second = tier.rpartition(":")
            price.tiers.add(from_hours=int(hours or 0), per_second=per_second)
    return made


def test_the_list_that_began_last_holds_and_a_projects_own_before_those_of_all() -> None:
    held = Held([prices("a"), prices("b", 20261105), prices("c", 20261108, project="p"), prices("d", 20261201)])

    def at(project: str, day: int) -> str:
        found = held.list_at(project, day_begin_us(day))
        return found.id if found is not None else ""

    assert [at("x", day) for day in (20261031, 20261101, 20261105, 20261130, 20261201)] == ["", "a", "b", "b", "d"]
    assert [at("p", day) for day in (20261107, 20261108, 20261231)] == ["b", "c", "c"]


def test_a_type_without_a_price_has_that_of_volumes() -> None:
    found = prices(volume="1", volume__ssd="2", cpu="3")
    assert [getattr(price_of(found, each), "of", "") for each in ("volume.ssd", "volume.local", "cpu", "image")] == [
        "volume.ssd", "volume", "cpu", "",
    ]  # fmt: skip


def test_tiers_go_on_where_the_month_has_come_to() -> None:
    price = Price(of="cpu", tiers=[PriceTier(per_second="2"), PriceTier(from_hours=1, per_second="1")])
    hour = Fraction(HOUR_US)
    assert cost(price, Fraction(0), hour) == 7200
    assert cost(price, hour, hour) == 3600
    assert cost(price, hour / 2, hour) == 3600 + 1800
    assert cost(price, Fraction(0), Fraction(0)) == 0


@given(st.lists(st.integers(0, 10 * HOUR_US), max_size=8))
def test_however_it_is_cut_it_costs_the_same(parts: list[int]) -> None:
    price = Price(of="cpu", tiers=[PriceTier(per_second="0.5"), PriceTier(from_hours=3, per_second="0.1")])
    used, total = Fraction(0), Fraction(0)
    for part in parts:
        total += cost(price, used, Fraction(part))
        used += part
    assert total == cost(price, Fraction(0), Fraction(sum(parts)))


def test_prices_are_decimals() -> None:
    assert decimal("0.0000014") is not None
    for bad in ("", "x", "-1", "1e7", "NaN", "Infinity", "0.0000000000000000001"):
        assert decimal(bad) is None, bad
    assert [is_priced(each) for each in ("cpu", "volume.ssd", "volume.", "vms")] == [True, True, False, False]
    assert [in_order(each) for each in ([0], [0, 5], [], [1], [0, 5, 5])] == [True, True, False, False, False]


def test_amounts_are_rounded_once() -> None:
    assert text(Fraction(1, 3), 2) == "0.33"
    assert text(Fraction(5, 1000), 2) == "0.01"
    assert text(Fraction(12345, 100), 0) == "123"


def test_a_plan_is_told_about_a_day() -> None:
    held = prices(cpu="0.000001", memory="0.0000002", volume="0.00000001")
    amounts = {"cpus": 1, "memory_bytes": GIB, "volume_bytes.local": 10 * GIB, "vms": 1}
    assert a_day(held, amounts) == Fraction("0.000001") * 86400 + Fraction("0.0000002") * 86400 + Fraction("0.0000001") * 86400
    assert about(held, amounts) == "about 0.11 CNY a day while it runs"
    assert about(held, {"cpus": -1}) == "about -0.086 CNY a day while it runs"
    assert about(held, {"volume_bytes.local": GIB}) == "about 0.00086 CNY a day while it runs"
    assert not about(held, {"ports": 1})


# --- reports -----------------------------------------------------------------------------------------------------------------


def volume(name: str, since_us: int, gib: int = 1) -> UsageOpen:
    return UsageOpen(object=f"volume/{name}", project="p", name=name, type="local", size_bytes=gib * GIB, since_us=since_us)


def report(window: Window, *lists: PriceList, group: UsageGroup.ValueType = UsageGroup.USAGE_GROUP_OBJECT) -> Report:
    return Report(window, group, Held(lists))


def test_each_row_costs_its_share() -> None:
    found = report(Window(BEGIN_US, BEGIN_US + HOUR_US), prices(volume="0.01", cpu="1"))
    found.open(volume("a", BEGIN_US))
    found.open(volume("b", BEGIN_US, 3))
    vm = UsageOpen(object="vm/c", project="p", name="c", cpus=2, memory_bytes=GIB, since_us=BEGIN_US)
    vm.guests.add(node="n")
    found.open(vm)
    costs = {key[3]: found.costs(key) for key in sorted(found.rows)}
    assert costs == {"volume/a": {"CNY": 36}, "volume/b": {"CNY": 108}, "vm/c": {"CNY": 7200}}


def test_what_was_used_earlier_in_the_month_fills_the_first_tier() -> None:
    window = Window(BEGIN_US, BEGIN_US + 2 * HOUR_US)
    lists = prices(volume="0.01,1:0.001")
    late = report(window, lists)
    late.open(volume("a", BEGIN_US - HOUR_US))
    assert late.costs(next(iter(late.rows))) == {"CNY": Fraction(72, 10)}
    fresh = report(window, lists)
    fresh.open(volume("a", BEGIN_US))
    assert fresh.costs(next(iter(fresh.rows))) == {"CNY": 36 + Fraction(36, 10)}
    # Another month begins anew.
    other = report(Window(day_begin_us(20261201), day_begin_us(20261201) + HOUR_US), lists)
    other.open(volume("a", BEGIN_US))
    assert other.costs(next(iter(other.rows))) == {"CNY": 36}


def test_prices_change_at_midnight_and_may_be_in_another_currency() -> None:
    window = Window(BEGIN_US, BEGIN_US + 2 * DAY_US)
    found = report(window, prices("a", volume="0.01"), prices("b", 20261111, currency="EUR", volume="0.02"))
    found.open(volume("a", BEGIN_US + DAY_US - HOUR_US))
    assert found.costs(next(iter(found.rows))) == {"CNY": 36, "EUR": Fraction(DAY_US, 10**6) * Fraction("0.02")}


def test_before_any_list_nothing_costs_anything() -> None:
    found = report(Window(BEGIN_US, BEGIN_US + HOUR_US), prices("a", 20270101, volume="0.01"))
    found.open(volume("a", BEGIN_US))
    assert found.costs(next(iter(found.rows))) == {}
    assert report(Window(BEGIN_US, BEGIN_US + 1)).rows == {}


def test_folded_days_cost_what_their_pieces_did() -> None:
    window, hour = Window(BEGIN_US, BEGIN_US + DAY_US), HOUR_US * GIB
    lists = prices(volume="0.01,1:0.001")
    day = UsageDay(project="p", day=DAY)
    held = day.objects.add(object="volume/a", type="local")
    held.pieces.add(begin_us=-HOUR_US, end_us=HOUR_US, us=2 * HOUR_US, byte_us=bytes_of(2 * hour))
    pieces = report(window, lists, group=UsageGroup.USAGE_GROUP_TYPE)
    pieces.day(day)
    month = UsageMonth(project="p", month=202611)
    for each in (DAY - 1, DAY):
        month.sums.add(day=each, kind="volume", type="local", us=HOUR_US, byte_us=bytes_of(hour))
    folded = report(window, lists, group=UsageGroup.USAGE_GROUP_TYPE)
    folded.month(month)
    (key,) = pieces.rows
    assert pieces.costs(key) == folded.costs(key) == {"CNY": Fraction(36, 10)}


groups = st.sampled_from([each for _, each in UsageGroup.items()])


@given(groups, st.lists(st.tuples(st.integers(0, 60 * 24), st.integers(1, 9)), min_size=1, max_size=6))
def test_however_it_is_grouped_all_rows_cost_the_same(group: UsageGroup.ValueType, hours: list[tuple[int, int]]) -> None:
    window = Window(BEGIN_US, BEGIN_US + 40 * DAY_US)
    lists = prices("a", volume="0.01,50:0.001"), prices("b", 20261118, volume="0.02,90:0.003")

    def total(by: UsageGroup.ValueType) -> Fraction:
        found = report(window, *lists, group=by)
        for number, (hour, gib) in enumerate(hours):
            found.open(volume(f"v{number}", BEGIN_US + (hour - 20 * 24) * HOUR_US, gib))
        return sum((found.costs(key).get("CNY", Fraction(0)) for key in found.rows), Fraction(0))

    assert total(group) == total(UsageGroup.USAGE_GROUP_PROJECT)
