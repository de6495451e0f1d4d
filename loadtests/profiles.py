"""The load tests by name: who takes part, how many, for how long, in what shape."""

from dataclasses import dataclass

__all__ = ["PROFILES", "Profile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What `python -m loadtests NAME` runs; every number can be overridden on the command line."""

    purpose: str
    users: int
    spawn_rate: float
    run_time: str
    shape: str = ""
    classes: tuple[str, ...] = ()
    """Empty: all but HttpHold and Office."""
    socks_servers: int = 1
    """More share the port: each has 20,000 descriptors at most on some machines, two a flow."""
    steady_memory: bool = False
    """The engine's memory must not grow after the first five minutes."""
    until_no_mapping: bool = False
    """Wait at the end until the last UDP mapping is gone, some six minutes: only then has every descriptor been given back."""


EVERYBODY = ("Http", "HttpShort", "StreamUp", "StreamDown", "TcpChurn", "UdpEcho", "Dns", "WebSocket", "Office")

PROFILES = {
    "load": Profile(purpose="everything in ten steps, a minute", users=60, spawn_rate=20, run_time="60s", shape="ramp"),
    "quick": Profile(purpose="does it all work? some seconds", users=20, spawn_rate=20, run_time="8s"),
    "office": Profile(purpose="people at desks", users=40, spawn_rate=10, run_time="60s", classes=("Office",)),
    "spike": Profile(
        purpose="finds what the machine carries, offers twice that, at once, and looks how soon all is as before",
        users=2000,
        spawn_rate=1000,
        run_time="5m",
        shape="spike",
        classes=("Http", "HttpShort", "TcpChurn"),
    ),
    "churn": Profile(purpose="users come and go", users=100, spawn_rate=50, run_time="80s", shape="churn"),
    "worker-crash": Profile(
        purpose="a worker is killed; only its flows may fail",
        users=60,
        spawn_rate=60,
        run_time="20s",
        shape="worker-crash",
        classes=(*EVERYBODY, "HttpHold"),
    ),
    "soak": Profile(
        purpose="half an hour of everything, and nothing may grow or leak",
        users=40,
        spawn_rate=10,
        run_time="30m",
        shape="soak",
        classes=EVERYBODY,
        steady_memory=True,
        until_no_mapping=True,
    ),
    "hold": Profile(
        purpose="10,000 connections held for ten minutes",
        users=10_000,
        spawn_rate=200,
        run_time="11m",
        classes=("HttpHold",),
        socks_servers=3,
    ),
}
