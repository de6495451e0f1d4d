"""Applications as locust users. Each checks all that comes back; what is wrong is a failure of the request it belongs to.

http       Http, HttpShort, HttpHold      requests on one connection; each on its own; a connection held open
streams    StreamUp, StreamDown           long transfers whose every byte is checked, at a steady rate
tcp        TcpChurn                       connect, exchange a token, close
udp        UdpEcho, Dns                   datagrams with loss and round trip; questions to a DNS server
websocket  WebSocket                      messages both ways
office     Office                         a desk: some of everything
"""

from loadtests.users.http import Http, HttpHold, HttpShort
from loadtests.users.office import Office
from loadtests.users.streams import StreamDown, StreamUp
from loadtests.users.tcp import TcpChurn
from loadtests.users.udp import Dns, UdpEcho
from loadtests.users.websocket import WebSocket

__all__ = [
    "Dns",
    "Http",
    "HttpHold",
    "HttpShort",
    "Office",
    "StreamDown",
    "StreamUp",
    "TcpChurn",
    "UdpEcho",
    "WebSocket",
]
