"""`python -m engine.netconf apply|renew|undo --run-dir DIR`: the short-lived process that changes the network.

apply   reads a NetworkPlan as JSON from standard input; prints remarks, one a line. `--guard-fd N` is the reading end of a
        pipe whose writer is the master: once that is gone, nothing is changed any more.
renew   makes again what the kernel took away while the tun was down, and what other programs have removed; prints the name of
        each, one a line. `--guard-fd` too.
undo    restores what the journal holds, and prints the number of changes undone; harmless when repeated. `--hold` leaves a
        kill switch closed.

Exit codes: 0 done, 1 failed, 2 usage, 3 not permitted; on failure one sentence on standard error.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from engine.netconf import EXIT_NOT_PERMITTED, NetworkError, changes
from engine.netconf.plan import NetworkPlan

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.netconf")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in "apply", "renew":
        change_parser = commands.add_parser(name)
        change_parser.add_argument("--run-dir", type=Path, required=True)
        change_parser.add_argument("--guard-fd", type=int)
    undo_parser = commands.add_parser("undo")
    undo_parser.add_argument("--run-dir", type=Path, required=True)
    undo_parser.add_argument("--hold", action="store_true")
    options = parser.parse_args(arguments)
    network = changes()
    try:
        if options.command == "apply":
            plan = msgspec.json.decode(sys.stdin.buffer.read(), type=NetworkPlan)
            for remark in network.apply(plan, options.run_dir, guard_fd=options.guard_fd):
                print(remark)
        elif options.command == "renew":
            for made in network.renew(options.run_dir, guard_fd=options.guard_fd):
                print(made)
        else:
            print(network.undo(options.run_dir, hold=options.hold))
    except msgspec.MsgspecError as error:
        print(f"The network plan on standard input cannot be read: {error}.", file=sys.stderr)
        return 2
    except NetworkError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_PERMITTED if error.not_permitted else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
