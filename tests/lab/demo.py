"""`make demo`: from nothing to two virtual machines on two servers that ping each other, told step by step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab.guest import build as build_guest
from tests.lab.hosts import REPOSITORY, LabError
from tests.lab.lab import Lab

CACHE = REPOSITORY / ".lab" / "cache"


class Story:
    """Numbered steps with the time each took."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.number = 0

    def step(self, title: str, act: Callable[[], Any]) -> Any:
        self.number += 1
        print(f"\n\033[1m[{self.number}] {title}\033[0m", flush=True)
        started = time.monotonic()
        result = act()
        print(f"    {time.monotonic() - started:.1f} s", flush=True)
        return result

    @property
    def total_s(self) -> float:
        return time.monotonic() - self.began


def cairn(lab: Lab, *arguments: str, check: bool = True, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run the product's own command line, showing what is run."""
    print("    $ cairn " + " ".join(arguments), flush=True)
    return lab.cairn(*arguments, check=check, **keywords)


def shown(result: subprocess.CompletedProcess[str]) -> None:
    for line in (result.stdout + result.stderr).rstrip().splitlines():
        print("      " + line)


def exists(lab: Lab, noun: str, name: str) -> bool:
    return lab.cairn(noun, "show", name, "-o", "name", check=False).returncode == 0


def ensure(lab: Lab, noun: str, name: str, *options: str) -> None:
    """Create the object unless it is there: the demo can be run again."""
    if exists(lab, noun, name):
        print(f"    {noun} {name} is there already")
        return
    verb = "import" if noun == "image" else "create"
    shown(cairn(lab, noun, verb, name, *options))


def address_of(lab: Lab, vm: str) -> tuple[str, str]:
    """(node name, address) of a VM."""
    document = json.loads(lab.cairn("vm", "show", vm, "-o", "json").stdout)
    return document["status"]["node"], document["status"]["nics"][0]["address"]


def ping_from(lab: Lab, vm: str, target: str) -> str:
    """Type a ping into a guest's serial console and return the line that sums it up; LabError when nothing answers."""
    print(f"    $ cairn vm console {vm}   # and type: ping -c 3 {target}", flush=True)
    for _ in range(8):
        result = lab.console(vm, f"ping -c 3 -W 2 {target}", until="packet loss", timeout_s=40)
        lines = [line.strip() for line in result.splitlines() if "packet loss" in line or "bytes from" in line]
        if any(" 0% packet loss" in line for line in lines):
            for line in lines:
                print("      " + line)
            return lines[-1]
        print(f"      {lines[-1] if lines else 'no answer'}: {target} is still booting; again", flush=True)
    raise LabError(f"{vm} does not reach {target}; the console said:\n{result}")


def tell(lab: Lab) -> None:
    story = Story()
    image = Path(CACHE / "demo.qcow2")
    story.step(f"A cloud of {lab.nodes} servers: etcd, controller, libvirtd and agent on each", lab.up)
    shown(cairn(lab, "node", "list"))
    story.step(
        "A guest image from Debian's own packages: kernel, busybox, a NoCloud client, a web server", lambda: build_guest(image)
    )
    story.step("Import it: checked, then kept on two nodes", lambda: ensure(lab, "image", "demo", "--file", str(image)))
    story.step("A private address space", lambda: ensure(lab, "vpc", "demo", "--cidr", "10.1.0.0/16"))
    story.step("One subnet in it", lambda: ensure(lab, "subnet", "blue", "--vpc", "demo", "--cidr", "10.1.1.0/24"))
    options = ("--cpus", "1", "--memory", "128MiB", "--image", "demo", "--subnet", "blue")
    if lab.storage is not None:
        options += ("--volume-type", "rbd")
    for name in ("left", "right"):
        story.step(f"Virtual machine {name!r}", lambda name=name: ensure(lab, "vm", name, *options))
    shown(cairn(lab, "vm", "list"))
    (left_node, left), (right_node, right) = address_of(lab, "left"), address_of(lab, "right")
    if left_node == right_node:
        raise LabError(f"both machines are on {left_node}: `cairn vm explain right` says why")
    story.step(f"left on {left_node} pings right on {right_node}", lambda: ping_from(lab, "left", right))
    story.step(f"right on {right_node} pings left on {left_node}", lambda: ping_from(lab, "right", left))
    print(f"""
\033[1mBoth answered, {story.total_s:.0f} s after the start.\033[0m The cloud is still running. Try:

  .venv/bin/cairn vm list                     .venv/bin/cairn vm explain left
  .venv/bin/cairn node show n1                .venv/bin/cairn event list
  .venv/bin/cairn vm console left             (Ctrl-] leaves)
  .venv/bin/cairn vm create web --cpus 1 --memory 128MiB --image demo --subnet blue --plan
  .venv/bin/cairn vm create web --cpus 1 --memory 128MiB --image demo --subnet blue
  .venv/bin/cairn vm delete web
  make down                                   removes every trace
""")
    sys.stdout.flush()
