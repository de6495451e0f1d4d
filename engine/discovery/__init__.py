"""Finds the proxy that this machine already has, when neither --proxy nor a configuration names one.

environment   all_proxy and its kin: ours, of the user behind sudo, /etc/environment     most trusted
settings      macOS (scutil), GNOME and what builds on it (gsettings), KDE (kioslaverc)
ports         what listens on this machine: well-known ports and well-known programs    least trusted
    │ Candidate
    ▼
probe         connects, and learns what the port speaks: SOCKS5 (with password? UDP?), SOCKS4, HTTP
    │ Speech
    ▼
search        puts all together, with the program that holds each local port; chooses, and says why
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal

from shared.config import ProxyConfig
from shared.process import ProcessInfo

__all__ = ["Access", "Candidate", "Found", "Source", "Speech"]


class Source(IntEnum):
    """Where a candidate comes from, the most trusted first."""

    ENVIRONMENT = 0
    SETTINGS = 1
    PORT = 2


class Access(Enum):
    """What one protocol of a port came to."""

    NO = "is not spoken"
    OPEN = "works"
    PASSWORD = "wants a password"
    REFUSED = "refuses the password"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may be a proxy."""

    source: Source
    origin: str
    """Where exactly, for the user: `all_proxy of sudo's user`, `port 1080`."""
    proxy: ProxyConfig
    """Kind as claimed; the probe decides. Not resolved."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What a port speaks."""

    socks5: Access = Access.NO
    udp: bool = False
    """It granted a UDP ASSOCIATE."""
    socks4: Access = Access.NO
    http: Access = Access.NO
    trouble: str = ""
    """Why nothing was learned: `connection refused`, `no answer`."""


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate that was probed."""

    candidate: Candidate
    speech: Speech
    holder: ProcessInfo | None
    """The program that listens there; None: not on this machine, or not to be found out."""
    ours: bool
    """The engine holds the port itself."""

    @property
    def kind(self) -> Literal["socks5", "socks4", "http"] | None:
        """The best protocol that works; None: it cannot be used."""
        if self.ours:
            return None
        speech = self.speech
        if speech.socks5 is Access.OPEN:
            return "socks5"
        if speech.http is Access.OPEN:
            return "http"
        return "socks4" if speech.socks4 is Access.OPEN else None

    @property
    def rank(self) -> tuple[int, int]:
        """The smaller, the better: trust first; among ports UDP before none, SOCKS5 before HTTP before SOCKS4."""
        source = self.candidate.source
        if source is not Source.PORT:
            return source, 0  # the user's own order counts
        return source, {"socks5": 0 if self.speech.udp else 1, "http": 2, "socks4": 3, None: 4}[self.kind]
