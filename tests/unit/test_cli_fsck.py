"""`cairn cluster fsck` on a real controller: silent when all is well, else it names a record that cannot be read."""

from __future__ import annotations

from pathlib import Path

from cairn.controller.store.base import Put, Txn
from cairn.controller.store.memory import MemoryStore
from cairn.proto import kinds

from tests.unit.cli_real import RealCloud
from tests.unit.test_cli_backup import VM, cloud, done, run, until

__all__ = ["cloud"]


def test_what_cannot_be_read_is_found_and_harms_nothing(cloud: RealCloud, tmp_path: Path) -> None:
    vm = done(cloud, "vm", "create", "web", *VM, "-o", "json").json
    host, controller = cloud.nodes["n1"].host, cloud.controllers["c1"]
    well = run(cloud, "cluster", "fsck")
    assert (well.code, "nothing is wrong" in well.err + well.out) == (0, True)
    spoiled = Txn("test", puts={kinds.VM.key(vm["id"]): Put(b"\xff\xff\xff\xff")})
    cloud.do(MemoryStore(cloud.backend).commit(spoiled))
    until(lambda: controller.cache.view.harmed, "the controller to have seen it")
    found = run(cloud, "cluster", "fsck", "-o", "json")
    assert found.code == 1
    assert [(each["check"], each["object"]) for each in found.json] == [("unreadable", f"vm/{vm['id']}")]
    assert "1 record cannot be read" in done(cloud, "cluster", "status").out
    assert "RUNNING" in done(cloud, "vm", "show", "web").out, "its last readable value is shown"
    assert host.guests[vm["id"]].live is not None
    refused = run(cloud, "--timeout", "1s", "vm", "stop", "web")
    assert refused.code != 0
    assert "cannot be read" in refused.err
