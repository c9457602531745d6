"""`share` and `unshare`: with whom, and what is said when that makes no sense."""

from __future__ import annotations

from tests.unit.cli_cloud import Cloud
from tests.unit.cli_objects import cloud  # noqa: F401
from tests.unit.cli_run import run
from tests.unit.test_cli_golden import fill


def test_shared_with_one_more(cloud: Cloud) -> None:  # noqa: F811
    fill(cloud)
    vpc = cloud.objects["vpc"]["rtr-00000001"]
    vpc.spec.sharing.projects.append("prj-green000")
    cloud.scripts["ShareVpc"].append(lambda _request: vpc)
    assert run(cloud, "vpc", "share", "demo", "--with", "red").code == 0
    (request,) = cloud.requests("ShareVpc")
    assert (request.id, list(request.sharing.projects), request.sharing.all) == (vpc.id, ["prj-green000", "red"], False)
    assert request.etag == vpc.etag


def test_shared_no_longer(cloud: Cloud) -> None:  # noqa: F811
    fill(cloud)
    image = cloud.objects["image"]["img-demo0001"]
    image.spec.sharing.projects.extend(["prj-red00000", "prj-green000"])
    image.spec.sharing.all = True
    cloud.scripts["ShareImage"].append(lambda _request: image)
    assert run(cloud, "image", "unshare", "demo", "--with", "red", "--all").code == 0
    (request,) = cloud.requests("ShareImage")
    assert (list(request.sharing.projects), request.sharing.all) == (["prj-green000"], False)


def test_with_whom(cloud: Cloud) -> None:  # noqa: F811
    fill(cloud)
    said = run(cloud, "vpc", "share", "demo")
    assert (said.code, "--with PROJECT or --all" in said.err) == (2, True)
    said = run(cloud, "vpc", "unshare", "demo", "--with", "red")
    assert (said.code != 0, "is not shared with project 'red'" in said.err) == (True, True)
