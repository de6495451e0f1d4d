"""Which flows live in a worker that their hash no longer points to: consulted for each packet while a worker drains."""

from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["Pins"]

Place = TypeVar("Place")


class Pins(Generic[Place]):
    """Flow key (engine/flow.py) -> the place where the flow lives.

    get  returns the place of a key, or None
    """

    def __init__(self) -> None:
        self._places: dict[bytes, Place] = {}
        self.get = self._places.get

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: Place, keys: Iterable[bytes]) -> None:
        """These flows live there, whatever was said of them before: whoever knows a flow last has it."""
        self._places.update(dict.fromkeys(keys, place))

    def remove(self, place: Place, keys: Iterable[bytes]) -> None:
        """These flows have ended there. One that has begun anew elsewhere stays pinned to where it is."""
        places = self._places
        for key in keys:
            if places.get(key) is place:
                del places[key]

    def drop(self, place: Place) -> None:
        """Nothing lives there any more."""
        for key in [key for key, pinned in self._places.items() if pinned is place]:
            del self._places[key]
