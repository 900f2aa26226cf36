"""``python -m calibrate measure``: needs nothing but numpy and torch, so it runs on a bare GPU machine."""

from __future__ import annotations

import argparse
import sys

from simulator.errors import SimError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and status 2."""
    from calibrate.measure.command import add_options, measure

    parser = argparse.ArgumentParser(prog="python -m calibrate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_options(commands.add_parser("measure", help="measure this device through the bundled engine"))
    options = parser.parse_args(arguments)
    try:
        return measure(options)
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
