"""`engine explain`."""

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli.options import USAGE, AsJson, ConfigFiles, fail, load_files

if TYPE_CHECKING:
    from engine.config.explain import Explanation
    from shared.process import ProcessInfo

__all__ = ["explain"]


def explain(
    destination: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where a program wants to connect to.")],
    config: ConfigFiles = None,
    udp: Annotated[bool, typer.Option("--udp", help="A datagram, not a TCP connection.")] = False,
    process: Annotated[str, typer.Option("--process", help="The program: its name, or its path.")] = "",
    user: Annotated[str, typer.Option("--user", help="The user that it runs as: name or number.")] = "",
    source: Annotated[
        str | None, typer.Option("--source", metavar="IP", help="Where it comes from. [default: this machine]")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="What sniffing finds: tls, http, ... [default: by the port]")
    ] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="Of the Clash API. [default: default_mode]")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which rule takes a flow, and why: every rule that is tried, with file:line and what does not hold."""
    import msgspec

    from engine.config.explain import Question
    from engine.config.explain import explain as explain_flow
    from engine.config.modes import modes_of, same_mode

    if not config:
        fail(USAGE, "-c is missing: name a configuration file, as in `engine explain example.com:443 -c config.json`")
    host, port = parse_destination(destination)
    if source is not None and not is_address(source):
        fail(USAGE, f"--source: {source!r} is no IP address")
    loaded = load_files(config)
    modes = modes_of(loaded.policy, loaded.mode)
    if mode is not None and not any(same_mode(mode, known) for known in modes):
        fail(USAGE, f"--mode: there is no mode {mode}, but {', '.join(modes)}")
    question = Question(
        host=host,
        port=port,
        network="udp" if udp else "tcp",
        source=source,
        process=process_info(process, user),
        protocol=protocol,
        mode=mode,
    )
    explanation = explain_flow(loaded, question, look_up)
    if as_json:
        typer.echo(msgspec.json.encode(explanation))
    else:
        for line in lines(explanation):
            print(line)


def parse_destination(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, where an IPv6 address stands in brackets; exit 2 when it is none."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        fail(USAGE, f"{text!r}: an IPv6 address stands in brackets, as in [2001:db8::1]:443")
    if not colon or not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        fail(USAGE, f"{text!r} is not HOST:PORT, such as example.com:443")
    return host, int(port)


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    from ipaddress import ip_address

    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def process_info(process: str, user: str) -> "ProcessInfo":
    """Return the program that is asked about; what is not said is not known."""
    from shared.process import ProcessInfo

    path = process if "/" in process else ""
    uid = int(user) if user.isdecimal() else None
    return ProcessInfo(name=process.rpartition("/")[2], path=path, uid=uid, user="" if user.isdecimal() else user)


def look_up(name: str) -> list[str]:
    """Return the addresses of a name, as this machine resolves it."""
    try:
        entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def lines(explanation: "Explanation") -> list[str]:
    """Return the explanation as a person reads it."""
    found = [explanation.flow, *(f"  note: {note}" for note in explanation.notes)]
    for tried in explanation.tried:
        mark = "+" if tried.holds else "-"
        found.append(f"  {mark} {tried.origin}: {tried.conditions} {tried.action}")
        found.append(f"      {tried.reason}")
    if explanation.outbound is None:
        found.append(f"{explanation.action}, by {explanation.decided_by}")
    else:
        by = f"by {explanation.decided_by}" if explanation.decided_by else "as no rule takes it (route.final)"
        found.append(f"outbound {' -> '.join(explanation.path)}, {by}")
    return found
