"""python -m tests.lab up|down|demo|status|traces [--nodes N] [--name NAME] [--storage ceph]: the cloud on this one machine."""

from __future__ import annotations

import argparse
import os
import sys

from tests.lab.hosts import LabError
from tests.lab.lab import Lab


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("verb", choices=["up", "down", "demo", "status", "traces"])
    parser.add_argument("--nodes", type=int, default=3, help="servers, 1 to 9 (default 3)")
    parser.add_argument("--name", default="lab", help="several labs can stand side by side (default: lab)")
    parser.add_argument("--storage", default="", metavar="ceph", help="a server with Ceph, which all nodes have a pool of")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("the lab makes network namespaces: run it as root", file=sys.stderr)
        return 1
    lab = Lab(arguments.name, arguments.nodes, say=lambda text: print("    " + text, flush=True), storage=arguments.storage)
    try:
        if arguments.verb == "up":
            lab.up()
            print("the cloud is up: .venv/bin/cairn node list")
        elif arguments.verb == "down":
            lab.down()
            print("nothing of the lab is left")
        elif arguments.verb == "status":
            lab.status()
        elif arguments.verb == "traces":
            left = lab.traces()
            print("\n".join(left) if left else "no trace")
            return 1 if left else 0
        else:
            from tests.lab.demo import tell

            tell(lab)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
