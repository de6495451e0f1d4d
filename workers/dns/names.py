"""Which names addresses belong to: the fake ones surely, others as far as is remembered of the answers."""

from time import monotonic

from shared.answered import AnsweredNames
from shared.fakeip import FakeIpTable
from workers.dns.wire import name_text

__all__ = ["KnownNames"]


class KnownNames:
    """`fake`: the table of fake addresses, if there are any. `answered`: what all workers have answered."""

    def __init__(self, fake: FakeIpTable | None, answered: AnsweredNames) -> None:
        self.fake = fake
        self.remembers = False
        """Whether answers are remembered (DnsConfig.reverse_mapping)."""
        self._answered = answered

    def name_of(self, address: bytes) -> tuple[str | None, bool]:
        """Return the name that a packed address was given out for, and whether it is a fake one, which leads nowhere."""
        if self.fake is not None and address in self.fake:
            return self.fake.name_of(address), True
        return (self._answered.find(address) if self.remembers else None), False

    def remember(self, name: bytes, addresses: tuple[bytes, ...]) -> None:
        """A program has been told that a name (on the wire, lower case) has these packed addresses."""
        now = monotonic()
        text = name_text(name)
        for address in addresses:
            self._answered.put(address, text, now)
