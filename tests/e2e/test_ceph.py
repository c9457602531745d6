"""Volumes that outlive a node's disk: two servers with a pool of a real Ceph, and guests that start from it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import create, furnished, status, wait_state
from tests.e2e.test_faults import qemu_pids
from tests.lab.ceph import missing
from tests.lab.demo import ping_from
from tests.lab.hosts import wait_until
from tests.lab.lab import STORAGE_POOL, Lab

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no Ceph here: {missing()}")
MARK = "CAIRN"


@pytest.fixture(scope="module")
def site() -> Iterator[Lab]:
    """A lab with Ceph; a second one, as all other tests need none."""
    with furnished(Lab(f"s{os.getpid()}", nodes=2, storage="ceph")) as lab:
        yield lab


def images(site: Lab) -> list[str]:
    """What is in the pool."""
    assert site.storage is not None
    return site.storage.ceph.images(STORAGE_POOL)


def does(site: Lab, vm: str, command: str) -> str:
    return site.console(vm, f"{command}; echo fini''shed", until="finished", timeout_s=60)


def test_a_volume_goes_from_a_guest_of_one_node_to_one_of_another(site: Lab) -> None:
    left = create(site, [], "left", "--volume-type", "rbd")
    right = create(site, [], "right", "--volume-type", "rbd")
    assert left["node"] != right["node"]
    (copy,) = [name for name in images(site) if name.startswith("image.")]
    ping_from(site, "left", str(right["nics"][0]["address"]))  # type: ignore[index]
    site.cairn("volume", "create", "data", "--size", "64MiB", "--type", "rbd", "--vm", "left")
    does(site, "left", f"until [ -b /dev/vdb ]; do sleep 0.2; done; yes {MARK} | head -c 1048576 > /dev/vdb; sync")
    taken = does(site, "left", "md5sum < /dev/vdb").split("-")[0].split()[-1]
    site.cairn("volume", "detach", "data")
    assert taken in _exported(site, "data"), "as docs/operations/storage.md reads a disk without Cairn"
    site.cairn("volume", "attach", "data", "--vm", "right")
    assert taken in does(site, "right", "until [ -b /dev/vdb ]; do sleep 0.2; done; md5sum < /dev/vdb")
    for vm in ("left", "right"):
        site.cairn("vm", "delete", vm, "--purge")
    shown = site.json("volume", "show", "data")
    assert (shown["status"]["state"], shown["status"]["pool"]) == ("STATE_AVAILABLE", f"rbd/{STORAGE_POOL}")
    site.cairn("volume", "delete", "data", "--purge")
    wait_until("the pool to hold the image's copy alone", lambda: images(site) == [copy], 60, every_s=0.5)


@pytest.mark.slow
def test_a_guest_writes_on_while_agents_and_workers_are_killed(site: Lab) -> None:
    created = create(site, [], "steady", "--volume-type", "rbd")
    host = site.host(str(created["node"]))
    site.cairn("volume", "create", "log", "--size", "64MiB", "--type", "rbd", "--vm", "steady")
    does(site, "steady", "until [ -b /dev/vdb ]; do sleep 0.2; done")
    does(site, "steady", "(i=0; while :; do i=$((i+1)); echo $i | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null; done) & true")
    for name in ("one", "two", "three"):
        site.cairn("volume", "create", name, "--size", "32MiB", "--type", "rbd", "--vm", "steady", "--no-wait")
        for each in site.hosts:
            each.kill("agent")
    for name in ("one", "two", "three"):
        wait_until(f"{name} to be made", lambda name=name: _volume(site, name)["state"] == "STATE_ATTACHED", 90, every_s=0.5)
    before = _counted(site)
    assert _counted(site) > before, "its disk is written to all the while"
    assert host.name == status(site, "steady")["node"]
    site.cairn("vm", "stop", "steady", "--force")
    wait_state(site, "steady", "STOPPED")
    site.cairn("vm", "start", "steady")
    assert _counted(site) > before, "and holds what was written"
    site.cairn("vm", "delete", "steady", "--purge")
    for name in ("log", "one", "two", "three"):
        site.cairn("volume", "delete", name, "--purge")
    wait_until(
        "nothing to be left of them", lambda: not [name for name in images(site) if name.startswith("vol-")], 90, every_s=0.5
    )


@pytest.mark.slow
def test_a_node_that_is_cut_off_with_a_writing_guest_writes_nothing_more_once_another_has_its_volume(site: Lab) -> None:
    """Cut off from the controllers and not from the pool: its guest runs on, and would write."""
    cut, other = site.hosts[1], site.hosts[0]
    create(site, [], "cut", "--volume-type", "local", "--node", cut.name)
    create(site, [], "heir", "--volume-type", "local", "--node", other.name)
    site.cairn("volume", "create", "torn", "--size", "64MiB", "--type", "rbd", "--vm", "cut")
    write = "while :; do yes OLD | head -c 65536 | dd of=/dev/vdb bs=64k conv=notrunc,fsync 2> /dev/null; done"
    does(site, "cut", f"until [ -b /dev/vdb ]; do sleep 0.2; done; ({write}) & true")
    qemu = qemu_pids(cut)
    for host, unheard in ((other, cut), (cut, other)):
        host.run("ip", "route", "add", "blackhole", unheard.address)
    site.cairn("volume", "detach", "torn", "--no-wait")
    wait_until("it to come off the node", lambda: _volume(site, "torn")["state"] == "STATE_AVAILABLE", 120, every_s=0.5)
    assert qemu_pids(cut) == qemu, "its guest runs, and nobody asked it to stop"
    site.cairn("volume", "attach", "torn", "--vm", "heir")
    wrote = does(site, "heir", f"until [ -b /dev/vdb ]; do sleep 0.2; done; yes {MARK} | head -c 1048576 > /dev/vdb; sync")
    assert "finished" in wrote
    taken = does(site, "heir", "md5sum < /dev/vdb").split("-")[0].split()[-1]
    log = f"/var/lib/cairn/console/{_id(site, 'cut')}.log"
    wait_until("its guest's writes to fail", lambda: "I/O error, dev vdb" in cut.run("cat", log).stdout, 60, every_s=0.5)
    assert taken in _exported(site, "torn"), "nothing of the old guest came after"
    for host, unheard in ((other, cut), (cut, other)):
        host.run("ip", "route", "del", "blackhole", unheard.address)
    wait_until("its node to be back", lambda: status(site, "cut")["state"] == "STATE_RUNNING", 90, every_s=0.5)
    wait_until(
        "its guest to have let go",
        lambda: "vdb" not in cut.run("virsh", "domblklist", _id(site, "cut")).stdout,
        60,
        every_s=0.5,
    )
    assert taken in does(site, "heir", "echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/vdb")
    assert _volume(site, "torn")["say"] == "attached to heir, in pool rbd/vms"
    for vm in ("cut", "heir"):
        site.cairn("vm", "delete", vm, "--purge")
    site.cairn("volume", "delete", "torn", "--purge")


def test_a_pool_that_is_away_keeps_nothing_else_waiting(site: Lab) -> None:
    assert site.storage is not None
    host = site.storage.host
    create(site, [], "has", "--volume-type", "local")
    site.cairn("volume", "create", "far", "--size", "32MiB", "--type", "rbd", "--vm", "has")
    services = [name for name in host.services if name != "mgr"]
    for service in services:
        host.hold(service)
        host.kill(service)
    site.cairn("volume", "resize", "far", "--size", "64MiB", "--no-wait")
    wait_until(
        "its node to say what is the matter", lambda: "growing it to 64 MiB: " in _volume(site, "far")["say"], 90, every_s=0.5
    )
    create(site, [], "near", "--volume-type", "local")
    does(site, "near", "true")
    for service in services:
        host.start(service)
    wait_until("it to have grown", lambda: _volume(site, "far")["say"] == "attached to has, in pool rbd/vms", 120, every_s=0.5)
    assert "has 131072 sectors" in does(site, "has", "echo has $(cat /sys/block/vdb/size) sectors"), "its guest sees it, too"
    for vm in ("has", "near"):
        site.cairn("vm", "delete", vm, "--purge")
    site.cairn("volume", "delete", "far", "--purge")


def _volume(site: Lab, name: str) -> dict[str, str]:
    found: dict[str, str] = site.json("volume", "show", name)["status"]
    return found


def _id(site: Lab, vm: str) -> str:
    return str(site.json("vm", "show", vm)["id"])


def _exported(site: Lab, volume: str) -> str:
    """The checksum of a volume, read by Ceph's own tools."""
    assert site.storage is not None
    ceph, id = site.storage.ceph, site.json("volume", "show", volume)["id"]
    text = ceph.run("rados", "-p", STORAGE_POOL, "listomapvals", f"cairn.volume.{id}")
    (image,) = {name for name in images(site) if name.startswith(f"{id}.")}
    assert "record" in text
    return ceph.run("sh", "-c", f"rbd export --no-progress {STORAGE_POOL}/{image} - | md5sum")


def _counted(site: Lab) -> int:
    """What the guest has counted to on its disk."""
    said = does(site, "steady", "sleep 1; echo n=$(dd if=/dev/vdb bs=512 count=1 2>/dev/null | head -n 1)=")
    return int(re.findall(r"n=(\d+)=", said)[-1])
