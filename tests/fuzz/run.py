"""Plays episodes until the inputs are used up."""

import resource
from collections import Counter
from dataclasses import dataclass
from random import Random

from tests.fuzz.targets import TARGETS

__all__ = ["Failure", "Result", "play", "play_episode"]

_SCHEDULE = [name for name, (weight, _) in TARGETS.items() for _ in range(weight)]
WARM_UP = 200
"""Episodes after which memory is taken for the idle level: caches and free lists have filled."""


@dataclass(frozen=True)
class Result:
    """Inputs by target, and memory."""

    inputs: Counter[str]
    episodes: int
    growth: int
    """Bytes by which the peak of resident memory rose after the warm-up."""


class Failure(Exception):
    """An invariant broke, or an exception escaped; says how to see it again."""


def play_episode(seed: int, episode: int) -> tuple[str, int]:
    """Play one episode; return its target and number of inputs. Raises Failure."""
    random = Random(f"{seed}/{episode}")
    name = _SCHEDULE[episode % len(_SCHEDULE)]
    try:
        return name, TARGETS[name][1](random)
    except Exception as error:
        raise Failure(f"{name}: {error!r}; again: python -m tests.fuzz --seed {seed} --episode {episode}") from error


def play(inputs: int, seed: int) -> Result:
    """Play episodes from 0 on until `inputs` have been given. Raises Failure."""
    given: Counter[str] = Counter()
    episode = warm = 0
    while given.total() < inputs:
        name, count = play_episode(seed, episode)
        given[name] += count
        episode += 1
        if episode == WARM_UP:
            warm = _peak_memory()
    return Result(given, episode, _peak_memory() - warm if warm else 0)


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
