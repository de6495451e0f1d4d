"""The last step of an import: what the loader would refuse is taken out, so that what is printed can be used."""

import json
from typing import Any

from engine.config.build.machine import this_machine
from engine.config.dialect import Path
from engine.config.importers.draft import Draft
from engine.config.load import load_text
from engine.config.problems import ConfigError

__all__ = ["settle"]

ROUNDS = 200
"""Things that are taken out at most."""


def settle(config: dict[str, Any], draft: Draft, at: int) -> dict[str, Any]:
    """Take out what the loader would refuse, and tell it: an importer carries over what it can read, and not all of that means
    something. `at` is where the file begins: these things have no line of their own."""
    for _ in range(ROUNDS):
        try:
            load_text(json.dumps(config), machine=this_machine())
        except ConfigError as error:
            for problem in error.errors:
                if problem.path[:2] == ("outbounds", 0) or not problem.path:
                    draft.refuse(at, f"the local proxy that the file names cannot be used: {problem.sentence}")
                    return config
                if _take_out(config, problem.path):
                    where, _, why = problem.sentence.partition(": ")
                    draft.leave(at, f"what would become {where} is left out: {why}")
                    break
            else:
                draft.refuse(at, f"nothing can be made of it: {error}")
                return config
        else:
            return config
    draft.refuse(at, "nothing can be made of it: too much would have to be left out")
    return config


def _take_out(config: dict[str, Any], path: Path) -> bool:
    """Remove the rule, server, outbound or key that a path leads to."""
    if path[0] == "route" and path[1:2] == ("final",):
        config["route"]["final"] = config["outbounds"][0]["tag"]
        return True
    where: Any = config
    for index, step in enumerate(path):
        part = (
            where.get(step)
            if isinstance(where, dict)
            else where[step]
            if isinstance(step, int) and step < len(where)
            else None
        )
        if part is None:
            return False
        if isinstance(where, list) or index == len(path) - 1 or not isinstance(part, dict | list):
            del where[step]
            return True
        where = part
    return False
