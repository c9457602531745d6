"""`cairn usage` and `cairn price` against a real controller, and agents on fake drivers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pytest

from tests.unit.cli_real import RealCloud
from tests.unit.cli_run import run
from tests.unit.test_cli_controller import VM, done
from tests.unit.test_cli_image import qcow2


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    """A controller, a node, a VM that was made, stopped, and deleted, and one that runs."""
    folder = tmp_path_factory.mktemp("cloud")
    cloud = RealCloud(folder, controllers=1)
    cloud.start()
    try:
        cloud.do(cloud.join("n1", done(cloud, "node", "token", "create", "--node", "n1").out))
        done(cloud, "image", "import", "demo", "--file", str(qcow2(folder / "demo.qcow2")), "--arch", "x86_64")
        done(cloud, "vpc", "create", "demo", "--cidr", "10.1.0.0/16")
        done(cloud, "subnet", "create", "blue", "--vpc", "demo", "--cidr", "10.1.1.0/24")
        done(cloud, "price", "create", "standard", "--currency", "CNY", "--from", "2026-01-01", "--price", "cpu=0.5",
             "--price", "volume=0.00000003,720000:0.00000002")  # fmt: skip
        done(cloud, "vm", "create", "gone", *VM)
        done(cloud, "vm", "stop", "gone", "--force")
        done(cloud, "vm", "delete", "gone", "--purge")
        done(cloud, "vm", "create", "web", *VM)
        yield cloud
    finally:
        cloud.close()


def test_what_was_used_is_told_by_object(cloud: RealCloud) -> None:
    ran = done(cloud, "usage", "report", "--group-by", "object")
    assert all(each in ran.out for each in ("web", "gone", "web-root", "demo", "CPU-H"))
    assert "from 20" in ran.err
    found = {
        (each["kind"], each["object_name"]): each
        for each in done(cloud, "usage", "report", "--group-by", "object", "-o", "json").json
    }
    web, gone = found["vm", "web"], found["vm", "gone"]
    assert web["open"]
    assert 0 < web["running_seconds"] <= web["seconds"]
    assert web["cpu_seconds"] == web["running_seconds"]
    assert not gone.get("open")
    assert 0 < gone["running_seconds"] < gone["seconds"]
    (cost,) = web["costs"]
    assert cost["currency"] == "CNY"
    assert float(cost["amount"]) == pytest.approx(web["cpu_seconds"] / 2, rel=0.001)


def test_a_table_is_read_by_a_spreadsheet(cloud: RealCloud) -> None:
    rows = list(
        csv.DictReader(io.StringIO(done(cloud, "usage", "report", "--group-by", "type", "--csv", "--all-projects").out))
    )
    assert [(each["project_name"], each["kind"], each["type"]) for each in rows] == [
        ("default", "image", ""), ("default", "vm", ""), ("default", "volume", "local"),
    ]  # fmt: skip
    assert float(rows[1]["cpu_seconds"]) > 0
    assert rows[1]["cost"].endswith(" CNY")


def test_a_time_that_is_none_is_refused(cloud: RealCloud) -> None:
    assert "is no time" in run(cloud, "usage", "report", "--from", "yesterday").err
    assert "whole hour" in run(cloud, "usage", "report", "--from", "2026-11-01T00:30").err


def test_prices_are_shown(cloud: RealCloud) -> None:
    assert "all projects" in done(cloud, "price", "list").out
    shown = done(cloud, "price", "show", "standard").out
    assert "0.5 CNY a second" in shown
    assert "0.00000002 CNY a second, from 720000 hours of a month on" in shown
    for bad in ("cpu=1,2", "cpu=5:1", "cpu=1,x:2"):
        ran = run(cloud, "price", "create", "bad", "--currency", "CNY", "--from", "2026-01-01", "--price", bad)
        assert ran.code == 2, ran.err


def test_a_plan_says_what_it_costs(cloud: RealCloud) -> None:
    out = done(cloud, "vm", "create", "more", *VM, "--plan").out
    assert "about 43200.00 CNY a day while it runs" in out
