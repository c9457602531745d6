"""python -m tests.lab.guest OUT.qcow2: build the demo guest image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.lab.guest import BuildError, build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.guest", description=__doc__)
    parser.add_argument("out", type=Path, help="where to put the image (qcow2)")
    try:
        print(build(parser.parse_args().out))
    except BuildError as error:
        print(f"guest image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
