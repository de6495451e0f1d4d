"""shared/contract.py: equal in all processes of one version, and another one when anything that they share has changed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from shared import contract as module
from shared.contract import contract


@pytest.fixture(autouse=True)
def not_kept() -> Iterator[None]:
    """Nor for other tests of this process, which start workers."""
    contract.cache_clear()
    yield
    contract.cache_clear()


def test_other_process_has_the_same() -> None:
    program = "from shared.contract import contract; print(contract())"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.strip() == contract()


class Message(msgspec.Struct, tag="message"):
    """Short."""

    id: int


class Same(msgspec.Struct, tag="message"):
    """Described otherwise."""

    id: int


class Other(msgspec.Struct, tag="message"):
    """With another field."""

    id: int
    more: Literal["a", "b"] = "a"


def test_messages_count_and_their_descriptions_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for message in (Message, Other):
        contract.cache_clear()
        monkeypatch.setattr(module, "FromWorker", message)
        found.append(contract())
    assert found[0] != found[1]
    Same.__name__ = "Message"
    contract.cache_clear()
    monkeypatch.setattr(module, "FromWorker", Same)
    assert contract() == found[0]


@pytest.mark.parametrize("name", ["PART_SIZE", "INLINE_MAX", "CELLS"])
def test_memory_counts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = contract()
    contract.cache_clear()
    monkeypatch.setattr(module, name, 1)
    assert contract() != before
