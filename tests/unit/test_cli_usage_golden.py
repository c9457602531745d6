"""What people see of usage and prices, as a transcript: tests/golden/cli/usage.txt. CAIRN_GOLDEN=write writes it anew."""

from __future__ import annotations

import os
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any

from cairn.proto.v1.price_list_pb2 import PriceList
from cairn.proto.v1.project_pb2 import Project
from cairn.proto.v1.usage_pb2 import ReportUsageRequest, ReportUsageResponse, Usage

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud  # noqa: F401
from tests.unit.cli_run import GOLDEN, run, transcript

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
UNTIL = BEGIN + timedelta(days=29, hours=7)
GIB, HOUR_S = 1 << 30, 3600.0


def answer(*rows: Usage) -> ReportUsageResponse:
    said = ReportUsageResponse(usages=rows)
    said.from_time.FromDatetime(BEGIN)
    said.until_time.FromDatetime(UNTIL)
    said.begin_time.FromDatetime(BEGIN - timedelta(days=3))
    return said


def used(project: str, cost: str = "", **fields: Any) -> Usage:
    usage = Usage(project=f"prj-{project}", project_name=project, **fields)
    usage.seconds, usage.running_seconds = 703 * HOUR_S, 650.5 * HOUR_S
    usage.cpu_seconds, usage.memory_byte_seconds, usage.byte_seconds = 1301 * HOUR_S, 2602 * GIB * HOUR_S, 14_060 * GIB * HOUR_S
    if cost:
        usage.costs.add(currency="CNY", amount=cost)
    return usage


def of_projects(request: ReportUsageRequest) -> ReportUsageResponse:
    assert request.project == "-"
    return answer(used("green"), used("red", "29.8471"))


def of_objects(_request: Any) -> ReportUsageResponse:
    web = used("red", "21.0012", kind="vm", object="i-0000web1", object_name="web")
    web.byte_seconds = 0
    gone = used("red", kind="volume", type="local", inexact_seconds=2 * HOUR_S)
    gone.running_seconds = gone.cpu_seconds = gone.memory_byte_seconds = 0
    said = answer(web, gone)
    said.gaps.add(objects=1, say="the store was restored: what changed from 2026-11-03 10:00 to 12:00 UTC did is not known")
    said.begin_time.FromDatetime(BEGIN + timedelta(days=1))
    said.behind = True
    return said


def prices() -> PriceList:
    held = PriceList(id="pl-00000001", name="public")
    held.spec.currency, held.spec.description = "CNY", "since December"
    held.spec.valid_from.FromDatetime(datetime(2026, 12, 1, tzinfo=UTC))
    held.spec.prices.add(of="cpu").tiers.add(per_second="0.0000139")
    volume = held.spec.prices.add(of="volume")
    volume.tiers.add(per_second="0.00000019")
    volume.tiers.add(from_hours=720_000, per_second="0.00000012")
    return held


TYPED = (
    ("usage report --all-projects", {"ReportUsage": of_projects}),
    ("--project red usage report --group-by object", {"ReportUsage": of_objects}),
    ("--project red usage report --group-by object --csv", {"ReportUsage": of_objects}),
    ("--project red usage report", {"ReportUsage": lambda _: answer()}),
    ("usage report --from soon", {}),
    ("price list", {}),
    ("price show public", {}),
    ("price create next --currency CNY --from 2026-12-01 --price volume=0.00000019:720000", {}),
    ("price delete public", {}),
)


def test_transcript(cloud: Cloud) -> None:  # noqa: F811
    cloud.do(cloud.add("price_list", prices()))
    cloud.do(cloud.add("project", Project(id="prj-red", name="red")))
    seen = []
    for command, scripts in TYPED:
        for method, script in scripts.items():
            cloud.scripts[method].append(script)
        seen.append(transcript(f"cairn {command}", run(cloud, *shlex.split(command))))
    path, text = GOLDEN / "usage.txt", "\n".join(seen)
    if os.environ.get("CAIRN_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    tables = [line for command in seen if "--csv" not in command for line in command.splitlines()[1:]]
    assert all(len(line) <= 100 for line in tables if not line.startswith("!"))
