"""`cairn quota`: what may be had, and what is."""

from __future__ import annotations

from cairn.proto.v1.quota_pb2 import Quota

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud  # noqa: F401
from tests.unit.cli_run import run

QUOTA = "quo-red00000"


def red(cloud: Cloud) -> Quota:  # noqa: F811
    quota = Quota(id=QUOTA, name="red", project="prj-red00000")
    quota.status.project_name, quota.status.say = "red", "full: 2 of 2 vms"
    quota.status.used.update({"vms": 2, "memory_bytes": 3 << 30})
    quota.status.limits["vms"] = quota.spec.limits["vms"] = 2
    cloud.scripts["GetQuota"].append(lambda _request: quota)
    return quota


def test_what_is_used_of_what_may_be(cloud: Cloud) -> None:  # noqa: F811
    red(cloud)
    shown = run(cloud, "quota", "show")
    assert shown.code == 0
    assert "2 of 2" in shown.out
    assert "3 GiB no limit" in shown.out


def test_limits_are_set_and_unset(cloud: Cloud) -> None:  # noqa: F811
    quota = red(cloud)
    cloud.scripts["UpdateQuota"].append(lambda _request: quota)
    arguments = ("--limit", "memory_bytes=64GiB", "--limit", "cpus=any", "--unset", "vms")
    assert run(cloud, "--project", "red", "quota", "set", *arguments).code == 0
    (request,) = cloud.requests("UpdateQuota")
    assert list(request.update_mask.paths) == ["spec.limits.memory_bytes", "spec.limits.cpus", "spec.limits.vms"]
    assert dict(request.quota.spec.limits) == {"memory_bytes": 64 << 30, "cpus": -1}
    (asked,) = cloud.requests("GetQuota")
    assert asked.project == "red"


def test_nonsense_is_refused_with_an_example(cloud: Cloud) -> None:  # noqa: F811
    for arguments in ((), ("--limit", "vms=many"), ("--limit", "memory_bytes=lots")):
        said = run(cloud, "quota", "set", *arguments)
        assert (said.code, "NAME=AMOUNT" in said.err) == (2, True)
