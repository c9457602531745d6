"""python -m tests.twin [--minutes N] [--seed N] [--name NAME] [--keep]: a real cloud under load and faults, watched and judged.

Brings up a lab of that name (or uses one that is up: then it stays), and plays in a process that lives in the lab's underlay.
The exit code is 1 when anything was found.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import subprocess
import sys
import time
from typing import Any

from tests.lab import libvirtd
from tests.lab.demo import CACHE
from tests.lab.guest import build as build_guest
from tests.lab.hosts import REPOSITORY
from tests.lab.lab import Lab
from tests.sim.user import IMAGE
from tests.twin.play import LIMIT_S, Twin

# On the underlay, where nobody else is.
OBSERVER = "172.31.0.250"
SERVERS = 3


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.twin", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long there are faults (default 10)")
    parser.add_argument("--seed", default="1", help="of what users and faults do (default 1)")
    parser.add_argument("--name", default="twin", help="of the lab (default twin)")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    parser.add_argument("--inside", action="store_true", help="the lab is up and this process is in its underlay")
    asked = parser.parse_args()
    if missing := libvirtd.missing():
        print(f"the twin needs a lab: {missing}", file=sys.stderr)
        return 1
    lab = Lab(asked.name, SERVERS, say=lambda text: print("    " + text, flush=True))
    if asked.inside:
        # Should even the loop that watches over the limit stand still.
        faulthandler.dump_traceback_later(asked.minutes * 60 + LIMIT_S + 60.0, exit=True)
        return asyncio.run(play(lab, asked.seed, asked.minutes))
    was_up = lab.folder.exists()
    try:
        lab.up()
        if lab.cairn("image", "show", IMAGE, check=False).returncode != 0:
            lab.cairn("image", "import", IMAGE, "--file", str(build_guest(CACHE / "demo.qcow2")))
        return inside(lab, asked.seed, asked.minutes).returncode
    finally:
        if not (was_up or asked.keep):
            lab.down()


def inside(lab: Lab, seed: str, minutes: float, **keywords: Any) -> subprocess.CompletedProcess[Any]:
    """Play in the underlay of a lab that is up and has the demo image."""
    lab.underlay.attend(OBSERVER)
    argv = ["nsenter", f"--net=/run/netns/{lab.underlay.namespace}", sys.executable, "-m", "tests.twin", "--inside"]
    argv += ["--name", lab.name, "--seed", seed, "--minutes", str(minutes)]
    return subprocess.run(argv, check=False, cwd=REPOSITORY, **keywords)


async def play(lab: Lab, seed: str, minutes: float) -> int:
    """Play and tell."""
    began_s = time.monotonic()
    figures = await Twin(lab, seed, minutes * 60, lambda text: print(text, flush=True)).run()
    print(f"\nseed {seed}, {minutes:g} minutes of faults, {time.monotonic() - began_s:.0f} s in all\n{figures}", flush=True)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
