"""``python -m calibrate``: ``measure`` takes raw samples, ``replay`` records a trace on the engine.

Both need nothing but numpy and torch, so they run on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import sys

from simulator.errors import SimError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and status 2."""
    from calibrate.measure.command import add_options, add_replay_options, measure, record

    parser = argparse.ArgumentParser(prog="python -m calibrate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_options(commands.add_parser("measure", help="measure this device through the bundled engine"))
    add_replay_options(commands.add_parser("replay", help="record a trace on the engine, for validation"))
    options = parser.parse_args(arguments)
    try:
        return measure(options) if options.command == "measure" else record(options)
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
