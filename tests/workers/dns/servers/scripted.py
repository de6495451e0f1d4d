"""A Server that answers as a test says, and remembers what it was asked."""

import asyncio
from collections.abc import Callable

from tests.workers.dns.messages import reply
from workers.dns import ServerFailed

__all__ = ["Scripted"]


class Scripted:
    """Answers each message by `script`: a message, or an exception to raise; None: never answers."""

    def __init__(self, script: Callable[[bytes], bytes | Exception | None] | str = "192.0.2.1") -> None:
        if isinstance(script, str):
            address = script
            self.script: Callable[[bytes], bytes | Exception | None] = lambda message: reply(
                message, f"{name_of(message)} 300 IN A {address}", edns=0
            )
        else:
            self.script = script
        self.asked: list[bytes] = []
        self.closed = False

    async def exchange(self, message: bytes) -> bytes:
        """Server."""
        self.asked.append(message)
        answer = self.script(message)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer

    def close(self) -> None:
        """Server."""
        self.closed = True


def name_of(message: bytes) -> str:
    """The name in the question, with the final dot."""
    import dns.name

    return dns.name.from_wire(message, 12)[0].to_text()


def failing(message: bytes) -> Exception:
    """Script: the server cannot be reached."""
    return ServerFailed("cannot be reached")


def silent(message: bytes) -> None:
    """Script: no answer, ever."""
