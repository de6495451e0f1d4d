"""Memory of fake addresses: the engine's processes are weighed before and after names were asked for.

PSS (proportional set size, proc(5)) of master, workers, guardian and HTTP process is added up, so that the table, which they
share, counts once. `python -m loadtests.fake_names --help` lists the options.

Exit codes: 0 within the target; 1 beyond it, or a name got no address of its own; 3 not root.
"""

import argparse
import json
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import dns.message
import dns.rcode
import psutil

from tests.support.engine import running_engine
from tests.support.netns import PROXY_V4, topology

NAMES = 100_000
TARGET_MIB = 64.0
"""That all processes together may grow by."""
WINDOW = 200
"""Questions under way."""
PATIENCE = 2.0
"""Seconds without any answer after which those under way are asked again."""
SERVER = ("203.0.113.53", 53)
"""Nobody is there: the engine answers."""
MIB = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.fake_names", description=__doc__)
    parser.add_argument("--names", type=int, default=NAMES, help=f"default {NAMES}")
    parser.add_argument("--workers", type=int, default=2, help="default 2")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("loadtests.fake_names: run it as root: it makes network namespaces", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="tunloom-fake-names-") as directory, topology() as net:
        config = Path(directory, "config.json")
        config.write_text(json.dumps(_config()))
        with running_engine(net.client, Path(directory, "run"), "-c", str(config), workers=options.workers) as engine:
            with net.client.entered():
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sock:
                sock.connect(SERVER)
                ask_all(sock, [f"warm-{n}.example" for n in range(1000)])
                before = pss(engine.pid)
                begun = time.monotonic()
                addresses = ask_all(sock, [f"name-{n}.some-service.example" for n in range(options.names)])
                took = time.monotonic() - begun
                after = pss(engine.pid)
    grown = (after - before) / MIB
    print(
        f"{options.names} names in {took:.1f} s: {before / MIB:.1f} MiB before, {after / MIB:.1f} after, {grown:.1f} more"
    )
    if len(addresses) != options.names:
        print(f"only {len(addresses)} different addresses were given out", file=sys.stderr)
        return 1
    return 0 if grown < TARGET_MIB else 1


def _config() -> dict[str, object]:
    return {
        "dns": {
            "servers": [
                {"type": "tcp", "tag": "tcp", "server": "203.0.113.54", "detour": "proxy"},
                {"type": "fakeip", "tag": "fake", "inet4_range": "198.18.0.0/15", "inet6_range": "fc00::/18"},
            ],
            "rules": [{"query_type": ["A", "AAAA"], "server": "fake"}],
        },
        "outbounds": [{"type": "socks", "tag": "proxy", "server": PROXY_V4, "server_port": 1080}],
        "route": {"rules": [{"port": 53, "action": "hijack-dns"}], "final": "proxy"},
    }


def pss(master: int) -> int:
    """Return the bytes of a process and all its descendants together."""
    root = psutil.Process(master)
    return sum(process.memory_full_info().pss for process in (root, *root.children(recursive=True)))


def ask_all(sock: socket.socket, names: Sequence[str]) -> set[str]:
    """Ask for the address of each name until all are answered; return the addresses."""
    waiting: dict[int, bytes] = {}
    addresses: set[str] = set()
    left = iter(names)
    numbers = cycle(range(65536))
    while True:
        while len(waiting) < WINDOW and (one := next(left, None)) is not None:
            number = next(number for number in numbers if number not in waiting)  # one that was lost keeps its own
            waiting[number] = dns.message.make_query(one, "A", id=number).to_wire()
            sock.send(waiting[number])
        if not waiting:
            return addresses
        if not select.select((sock,), (), (), PATIENCE)[0]:
            for question in waiting.values():
                sock.send(question)
            continue
        answer = sock.recv(512)
        number = int.from_bytes(answer[:2], "big")
        question = waiting.get(number, b"")
        if answer[12 : len(question)] != question[12:]:
            continue  # to one that was asked again, and has been answered
        if answer[3] & 15:
            print(f"an answer says {dns.rcode.to_text(dns.rcode.Rcode(answer[3] & 15))}: asked again", file=sys.stderr)
            sock.send(question)
        elif waiting.pop(number, None):
            addresses.add(socket.inet_ntoa(answer[-4:]))


if __name__ == "__main__":
    sys.exit(main())
