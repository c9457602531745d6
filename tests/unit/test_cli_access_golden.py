"""What people with few rights see, as transcripts: tests/golden/cli/access.txt. CAIRN_GOLDEN=write writes it anew.

A real controller, memory store, real agents on fake drivers: bob works in project red, carol only looks there, olga looks after
nodes. `bob$` is what bob typed.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cairn.proto import pki
from cairn.proto.seams import SystemClock, SystemIds

from tests.unit.cli_real import RealCloud
from tests.unit.cli_run import GOLDEN, Ran, run, transcript
from tests.unit.test_cli_controller import VM, done
from tests.unit.test_cli_image import qcow2

FILE = GOLDEN / "access.txt"
# Who -> what he types, in order. Nobody has a certificate and no role.
TYPED = (
    ("bob", "auth whoami"),
    ("bob", "vm list"),
    ("bob", "vm show web"),
    ("bob", "--project green vm list"),
    ("bob", "vm show i-00000000"),
    ("bob", "node list"),
    ("bob", "vm explain web"),
    ("bob", "vm list --filter 'status.node = \"n1\"'"),
    ("bob", "vm create huge --image debian --cpus 1 --memory 1TiB"),
    ("bob", "image delete debian"),
    ("bob", "volume create big --size 2GiB"),
    ("bob", "volume create small --size 8MiB --plan"),
    ("bob", "role bind member --user carol --project red"),
    ("bob", "auth can-i vm.delete vm/web"),
    ("bob", "auth can-i node.see"),
    ("carol", "vm stop web"),
    ("carol", "auth can-i vm.stop vm/web"),
    ("olga", "vm list"),
    ("olga", "vm delete web"),
    ("nobody", "vm list"),
    ("admin", "project delete red"),
    ("admin", "user delete olga"),
    ("admin", "quota show"),
    ("admin", "idp create corp --issuer http://id.example --client-id cairn"),
    ("admin", "idp create corp --issuer https://id.example --client-id cairn --group '/ops=ops team'"),
    ("admin", "idp create corp --issuer https://id.example --client-id cairn --group /ops=ops --create-users"),
    ("admin", "idp show corp"),
    ("bob", "idp list"),
    ("admin", "user link carol corp 8f2c"),
    ("admin", "user link bob corp 8f2c"),
    ("admin", "user show carol"),
    ("admin", "idp delete corp"),
    ("admin", "price create next --currency CNY --from 2026-12-01 --price gpu=1"),
    ("admin", "price create next --currency CNY --from 2026-12-01T08:00 --price cpu=0.0000139"),
    ("admin", "--project red quota set --limit tokens=0"),
    ("admin", "token create --user bob --in-project red"),
    ("bob", "usage report"),
    ("admin", "login"),
    ("admin", "logout"),
)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    folder = tmp_path_factory.mktemp("access")
    cloud = RealCloud(folder)
    cloud.start()
    try:
        furnish(cloud, folder)
        yield cloud
    finally:
        cloud.close()


def furnish(cloud: RealCloud, folder: Path) -> None:
    """Two nodes, two projects, an image shared with all, a VM, three users."""
    for name in ("n1", "n2"):
        cloud.do(cloud.join(name, done(cloud, "node", "token", "create", "--node", name).out))
    done(cloud, "image", "import", "debian", "--file", str(qcow2(folder / "demo.qcow2")), "--arch", "x86_64")
    done(cloud, "image", "share", "debian", "--all")
    for project in ("red", "green"):
        done(cloud, "project", "create", project)
    for user, role, where in (("bob", "member", "red"), ("carol", "viewer", "red"), ("olga", "operator", "")):
        done(cloud, "user", "create", user)
        within = ("--project", where) if where else ("--cluster",)
        done(cloud, "role", "bind", role, "--user", user, *within)
    for user in ("bob", "carol", "olga", "nobody"):
        pki.certify(folder, pki.Identity("user", user), user, timedelta(days=1), SystemClock(), SystemIds())
    inside = ("--project", "red")
    done(cloud, *inside, "vpc", "create", "net", "--cidr", "10.9.0.0/16")
    done(cloud, *inside, "subnet", "create", "a", "--vpc", "net", "--cidr", "10.9.1.0/24")
    done(cloud, *inside, "vm", "create", "web", *VM[:4], "--image", "debian", "--subnet", "a", "--node", "n1")
    done(cloud, *inside, "quota", "set", "--limit", "volume_bytes.local=1GiB", "--limit", "vms=2")


def typed(cloud: RealCloud, who: str, command: str) -> Ran:
    arguments = shlex.split(command)
    if who != "admin" and "--project" not in arguments:
        arguments = ["--project", "red", *arguments]
    if who == "admin" and command == "quota show":
        arguments = ["--project", "red", *arguments]
    stem = cloud.folder / ("admin" if who == "admin" else f"user-{who}")
    pair = {"CAIRN_CERT": f"{stem}.crt", "CAIRN_KEY": f"{stem}.key"}
    return run(cloud, *arguments, **pair)


def masked(text: str) -> str:
    """Without what is another each time, or on another machine: ids, addresses of cards, ages, moments, sizes of nodes."""
    text = re.sub(r"\b(i|vol|img|prj|rb|usr|quo|nic|rtr|vxnet|node|plan|role|idp)-[0-9a-z]{8}\b", r"\1-<id>", text)
    text = re.sub(r"\bmember-[0-9a-z]{8}\b", "member-<id>", text)
    text = re.sub(r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b", "<mac>", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "<moment>", text)
    text = re.sub(r"can give [0-9.]+ [A-Z]iB", "can give <size>", text)
    text = re.sub(r"\(in \d+\w+\)|(?<=  )-?\d+[smhd]\b", "<age>", text)
    return re.sub(r"(?m) +$", "", text)


def test_refusals_read_well(cloud: RealCloud) -> None:
    said = "\n".join(
        masked(transcript(command, typed(cloud, who, command))).replace("$ ", f"{who}$ cairn ", 1) for who, command in TYPED
    )
    if os.environ.get("CAIRN_GOLDEN") == "write":
        FILE.write_text(said)
    assert said == FILE.read_text()
