"""How many users there are at each moment: `--shape NAME`, with locust's own `-u PEAK -r PER_SECOND -t TIME`.

ramp   from none to the peak in ten steps, and there for a fifth of the time
spike  steps until the machine carries no more, then twice that, at once, and back (spike.py); the peak is the most to try
soak   the peak, all the time
churn  the peak and a tenth of it in turns, every ten seconds: users come and go
worker-crash  the peak, all the time; in the middle a worker is killed (worker_crash.py)

Pure: a shape is a function of time; locustfile.py makes locust's class of it. (Whoever imports locust has all of the
standard library's sockets replaced by gevent's.)
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

__all__ = ["SHAPES", "SPIKE", "Share", "chosen"]

SPIKE: Final = "spike"
"""The one shape that depends on what is answered."""

STEPS = 10
CHURN_PERIOD = 10.0  # seconds
CHURN_BASE = 0.1

Share = Callable[[float, float], float]
"""Share of the peak when a part of the time (0 to 1), so many seconds, have passed."""


def _ramp(done: float, now: float) -> float:
    return min(1.0, math.ceil(max(done, 1e-9) / 0.8 * STEPS) / STEPS)


def _soak(done: float, now: float) -> float:
    return 1.0


def _churn(done: float, now: float) -> float:
    return 1.0 if now % (2 * CHURN_PERIOD) < CHURN_PERIOD else CHURN_BASE


SHAPES: dict[str, Share] = {"ramp": _ramp, "soak": _soak, "churn": _churn, "worker-crash": _soak}


def chosen(arguments: Sequence[str], environment: Mapping[str, str]) -> Share | Literal["spike"] | None:
    """Return the shape that the command line (or LOCUST_SHAPE) names; locust wants to know before it has parsed its options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--shape", default=environment.get("LOCUST_SHAPE", ""))
    name = parser.parse_known_args(arguments)[0].shape
    return SPIKE if name == SPIKE else SHAPES.get(name)
