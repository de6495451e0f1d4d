"""The command line of the fuzzer; see the package."""

import argparse
import sys
import traceback
from time import monotonic

from tests.fuzz.run import Failure, play, play_episode


def main() -> int:
    """Exit code 0: nothing found; 1: a failure, printed with its traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Give hostile input to the packet code.")
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episode", type=int, help="play only this one")
    options = parser.parse_args()
    try:
        if options.episode is not None:
            print(*play_episode(options.seed, options.episode))
            return 0
        began = monotonic()
        result = play(options.inputs, options.seed)
    except Failure as failure:
        print(failure, *traceback.format_exception(failure.__cause__), sep="\n")
        return 1
    seconds = monotonic() - began
    total = result.inputs.total()
    print(
        f"{total} inputs in {result.episodes} episodes, {seconds:.0f} s, {total / seconds:.0f} a second; nothing found"
    )
    print(", ".join(f"{name} {count}" for name, count in result.inputs.items()))
    print(f"growth of memory after the warm-up: {result.growth / 1024:.0f} KiB")
    return 0


sys.exit(main())
