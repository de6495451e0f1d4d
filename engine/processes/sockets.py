"""Queries of the kernel's socket table. One object is not for two threads at once."""

import errno
import socket
import struct

from engine.processes import Network, ProcessError, Socket
from engine.processes.sock_diag import (
    AF_INET,
    AF_INET6,
    NETLINK_SOCK_DIAG,
    TCP,
    UDP,
    DiagError,
    State,
    encode_dump,
    encode_query,
    parse_messages,
)
from shared.rules.flow import Ends

__all__ = ["SocketQueries", "open_sock_diag"]

RECEIVE_SIZE = 64 * 1024  # bytes; the kernel fills at most 32 KiB at a time (NLMSG_GOODSIZE, netlink_dump)
ANSWER_TIMEOUT = struct.pack("ll", 1, 0)  # struct timeval; the kernel answers within the send itself
_PROTOCOLS: dict[Network, int] = {"tcp": TCP, "udp": UDP}


def open_sock_diag() -> socket.socket:
    """Return a socket for queries about the network namespace that the calling thread is in.

    Raises ProcessError where the kernel has no such table (gVisor, kernels without CONFIG_INET_DIAG).
    """
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    except OSError as error:
        raise ProcessError(f"The kernel does not tell which program a flow is of: {error.strerror}.") from error


class SocketQueries:
    """One netlink socket, kept: a new one for each query would double its cost."""

    def __init__(self, netlink: socket.socket) -> None:
        """Take over a socket of `open_sock_diag`: it asks about the network namespace in which it was made."""
        self._netlink = netlink
        self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, ANSWER_TIMEOUT)
        self._sequence = 0

    def close(self) -> None:
        """Close the netlink socket; harmless when repeated."""
        self._netlink.close()

    def find(self, flow: Ends) -> Socket | None:
        """See ProcessTable.find."""
        if flow.network == "tcp":
            return self._exact(TCP, flow.source, flow.source_port, flow.destination, flow.destination_port, flow)
        # UDP is looked up as for a packet that arrives, hence from the peer's point of view.
        return self._exact(UDP, flow.destination, flow.destination_port, flow.source, flow.source_port, flow)

    def search(self, flow: Ends) -> Socket | None:
        """See ProcessTable.search. The kernel filters by port alone: without the comparison, strangers would be found."""
        protocol = _PROTOCOLS[flow.network]
        families = (AF_INET, AF_INET6) if len(flow.source) == 4 else (AF_INET6,)
        for family in families:
            for found in self._dump(family, protocol, states=State.ALL, local_port=flow.source_port):
                if _is_socket_of(flow, found):
                    return found
        return None

    def listener(self, address: bytes, port: int) -> Socket | None:
        """See ProcessTable.listener."""
        found = self._query(TCP, address, port, bytes(len(address)), 0)
        return found if found is not None and found.inode and not any(found.remote) else None

    def listeners(self) -> list[Socket]:
        """See ProcessTable.listeners."""
        return self._all(TCP, State.LISTEN)

    def bound(self, port: int) -> list[Socket]:
        """See ProcessTable.bound."""
        return self._all(UDP, State.ALL, local_port=port)

    def connections(self, network: Network) -> list[Socket]:
        """See ProcessTable.connections."""
        return self._all(_PROTOCOLS[network], State.ESTABLISHED | State.SYN_SENT)

    def _all(self, protocol: int, states: int, *, local_port: int = 0) -> list[Socket]:
        return [
            found
            for family in (AF_INET, AF_INET6)
            for found in self._dump(family, protocol, states=states, local_port=local_port)
            if found.inode
        ]

    def _exact(
        self, protocol: int, source: bytes, source_port: int, destination: bytes, destination_port: int, flow: Ends
    ) -> Socket | None:
        found = self._query(protocol, source, source_port, destination, destination_port)
        return found if found is not None and _is_socket_of(flow, found) else None

    def _query(
        self, protocol: int, source: bytes, source_port: int, destination: bytes, destination_port: int
    ) -> Socket | None:
        sequence = self._next_sequence()
        request = encode_query(protocol, source, source_port, destination, destination_port, sequence=sequence)
        try:
            self._netlink.send(request)
            while True:
                found, _ = parse_messages(self._netlink.recv(RECEIVE_SIZE), sequence=sequence)
                if found:
                    return found[0]
        except DiagError as error:
            if error.errno != errno.ENOENT:  # ENOENT: there is no such socket
                raise _explained(error) from None
            return None
        except BlockingIOError:  # no answer in time: as good as none
            return None

    def _dump(self, family: int, protocol: int, *, states: int, local_port: int = 0) -> list[Socket]:
        sequence = self._next_sequence()
        sockets: list[Socket] = []
        done = False
        try:
            self._netlink.send(encode_dump(family, protocol, states=states, local_port=local_port, sequence=sequence))
            while not done:
                found, done = parse_messages(self._netlink.recv(RECEIVE_SIZE), sequence=sequence)
                sockets += found
        except DiagError as error:
            if error.errno != errno.ENOENT:  # ENOENT: the kernel has no such family or protocol
                raise _explained(error) from None
        except BlockingIOError:
            pass
        return sockets

    def _next_sequence(self) -> int:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        return self._sequence


def _is_socket_of(flow: Ends, found: Socket) -> bool:
    """Tell whether the kernel's answer is the flow's socket, and somebody holds it."""
    if not found.inode or found.local_port != flow.source_port:
        return False
    to_peer = found.remote == flow.destination and found.remote_port == flow.destination_port
    if flow.network == "tcp":
        return to_peer and found.local == flow.source
    connected = any(found.remote) or found.remote_port
    return (to_peer or not connected) and (found.local == flow.source or not any(found.local))


def _explained(error: DiagError) -> ProcessError:
    return ProcessError(
        f"The kernel does not tell which program a flow is of: error {errno.errorcode.get(error.errno)}."
    )
