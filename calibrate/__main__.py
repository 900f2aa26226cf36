"""``python -m calibrate``: measure this machine, and record the engine on it.

``measure`` takes raw samples; ``replay`` records a trace, ``loads`` the engine at shares of its own capacity.

They need nothing but numpy and torch, so they run on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import sys

from simulator.errors import SimError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and status 2."""
    from calibrate.measure import command, job

    parser = argparse.ArgumentParser(prog="python -m calibrate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    jobs = {
        "measure": ("measure this device through the bundled engine", command.add_options, job.measure),
        "replay": (
            "record a trace on the engine, for validation",
            command.add_replay_options,
            command.record,
        ),
        "loads": (
            "record the engine at shares of its own capacity, for validation",
            command.add_loads_options,
            command.record_loads,
        ),
    }
    for name, (text, add, _) in jobs.items():
        add(commands.add_parser(name, help=text))
    options = parser.parse_args(arguments)
    try:
        return jobs[options.command][2](options)
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
