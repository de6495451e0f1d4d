"""What is fuzzed. A target plays one episode with a Random of its own and returns how many inputs it gave.

It raises AssertionError, or whatever escapes from the code under test: nothing may but the documented exceptions.
"""

from collections.abc import Callable, Collection
from random import Random

from engine.flow import Fragment, Malformed, flow_key
from engine.fragments import MAX_DATAGRAMS, Reassembler
from shared.wire import ip, socks5, tcp
from tests.fuzz.mutation import mutated
from tests.fuzz.seeds import DATAGRAMS, SEEDS
from tests.fuzz.world import World
from tests.support.quic import crypto, initial
from tests.workers.dns.messages import ask, reply
from tests.workers.sniff.captures import capture, every_capture
from workers.dns.answers import filter_bindings, without_edns
from workers.dns.cache import Answer
from workers.dns.wire import BadQuery, BadReply, Query, check_name, parse_query, parse_reply
from workers.sniff import SNIFFERS, DatagramSniffer, Incomplete, Result, sniff_stream

__all__ = ["TARGETS"]

STACK_INPUTS = 500
CHECK_EVERY = 50
OTHER_INPUTS = 100


def stack(random: Random) -> int:
    """Stack.process with a live relay."""
    world = World(random)
    for number in range(STACK_INPUTS):
        world.step()
        if number % CHECK_EVERY == 0:
            world.check()
    world.check()
    world.wind_down()
    return STACK_INPUTS


def flow(random: Random) -> int:
    """flow_key: a key, or one of two exceptions; the same key for packets that differ in their text only."""
    for _ in range(OTHER_INPUTS):
        packet = mutated(random.choice(SEEDS), random)
        try:
            key = flow_key(memoryview(packet))
        except (Malformed, Fragment):
            continue
        assert 6 <= len(key) <= 36
        assert flow_key(memoryview(bytes(10) + packet[10:])) == key
    return OTHER_INPUTS


def fragments(random: Random) -> int:
    """The engine's Reassembler, behind flow_key as in Ingress: each fragment is held, dropped, or part of one packet."""
    reassembler = Reassembler(max_bytes=4096)
    offered = used = 0
    now = 0.0
    for _ in range(OTHER_INPUTS):
        seed = random.choice(random.choice(DATAGRAMS))
        packet = memoryview(mutated(seed, random) if random.random() < 0.3 else seed)
        now += random.random() * 3
        try:
            flow_key(packet)
        except Malformed:
            continue
        except Fragment:
            pass
        else:
            continue
        reassembler.expire(now)
        offered += 1
        before, dropped = _pieces(reassembler), reassembler.dropped
        whole = reassembler.add(packet, now)
        if whole is not None:
            used += before + 1 - _pieces(reassembler) - (reassembler.dropped - dropped)
            assert len(whole) <= 10 + 40 + 65535
        datagrams = reassembler._datagrams.values()
        assert reassembler.bytes_held == sum(sum(map(len, d.pieces.values())) for d in datagrams) <= 4096
        assert len(datagrams) <= MAX_DATAGRAMS
        assert offered == used + reassembler.dropped + _pieces(reassembler)
    reassembler.expire(now + 1000)
    assert not reassembler.bytes_held and offered == used + reassembler.dropped
    return OTHER_INPUTS


def _pieces(reassembler: Reassembler) -> int:
    return sum(len(datagram.pieces) for datagram in reassembler._datagrams.values())


def codecs(random: Random) -> int:
    """IP headers and TCP options: what is returned lies within the buffer."""
    for _ in range(OTHER_INPUTS // 2):
        packet = memoryview(mutated(random.choice(SEEDS), random))
        parsed = ip.parse(packet, 10, verify=random.random() < 0.5)
        assert parsed is None or 30 <= parsed.payload_at <= parsed.end <= len(packet)
        options = mutated(random.choice(OPTIONS), random)[:40]
        found = tcp.parse_options(memoryview(options))
        assert found is None or (len(found.sack) <= 4 and (found.window_scale or 0) <= 14)
    return OTHER_INPUTS // 2 * 2


OPTIONS = [
    tcp.syn_options(tcp.Options(mss=1460, window_scale=7, sack_permitted=True, timestamps=(1, 2))),
    tcp.timestamp_option(1, 2) + tcp.sack_option([(1, 2), (3, 4)]),
    tcp.sack_option([(1, 2), (3, 4), (5, 6), (7, 8)]),
]


def socks(random: Random) -> int:
    """Headers, addresses and fragments of SOCKS5."""
    reassembler = socks5.Reassembler()
    now = 0.0
    for _ in range(OTHER_INPUTS):
        data = memoryview(mutated(random.choice(SOCKS_SEEDS), random))
        try:
            parsed = socks5.parse_address(data, 3)
        except ValueError:
            parsed = None
        assert parsed is None or parsed[3] <= len(data)
        header = socks5.parse_udp_header(data)
        if header is None:
            continue
        fragment, _, address, port, at = header
        assert at <= len(data)
        now += random.random()
        whole = reassembler.add(fragment, address, port, data[at:], now)
        assert whole is None or len(whole) <= 65535
    return OTHER_INPUTS


SOCKS_SEEDS = [
    b"\0\0" + bytes((fragment,)) + address + b"datagram"
    for fragment in (0, 1, 2, 0x82)
    for address in (b"\1\xcb\0\x71\x0a\0\x35", b"\4" + bytes(16) + b"\0\x35", b"\3\x0bexample.com\0\x35")
]


def sniff(random: Random) -> int:
    """The sniffers: what clients send, damaged, in pieces. QUIC is damaged within its encryption too."""
    for _ in range(OTHER_INPUTS // 2):
        data = bytes(mutated(random.choice(SNIFF_SEEDS), random))
        wanted = SNIFFERS if random.random() < 0.5 else {random.choice(SNIFF_NAMES)}
        for end in sorted((random.randrange(len(data) + 1), len(data))):
            _check_sniffed(sniff_stream(data[:end], wanted), wanted)
        sniffer = DatagramSniffer(wanted)
        for _ in range(3):
            datagram = data if random.random() < 0.3 else bytes(mutated(random.choice(SNIFF_SEEDS), random))
            _check_sniffed(sniffer.feed(datagram), wanted)
            _check_sniffed(sniffer.feed(initial(bytes(mutated(random.choice(QUIC_SEEDS), random)))), wanted)
    return OTHER_INPUTS // 2 * 8


def _check_sniffed(result: Result, wanted: Collection[str]) -> None:
    sniffed = result.so_far if isinstance(result, Incomplete) else result
    if sniffed is not None:
        assert sniffed.protocol in wanted
        assert sniffed.domain is None or (0 < len(sniffed.domain) <= 253 and sniffed.domain == sniffed.domain.lower())
        assert sniffed.client is None or sniffed.client.isprintable()


SNIFF_SEEDS = [capture(name) for name in every_capture()]
SNIFF_NAMES = sorted(SNIFFERS)
_HELLO = capture("tls-openssl")[5:]
QUIC_SEEDS = [
    crypto(0, _HELLO),
    crypto(100, _HELLO[100:]) + b"\1\0\0\2\0\0\0\0" + crypto(0, _HELLO[:100]),
    crypto(9, _HELLO[9:]),
]


def dns(random: Random) -> int:
    """DNS messages: a query is refused or answered, a server's answer is refused or can be given to whoever asks."""
    for _ in range(OTHER_INPUTS // 2):
        query = _query(mutated(random.choice(DNS_QUERIES), random))
        data = bytes(mutated(random.choice(DNS_REPLIES), random))
        try:
            reply = parse_reply(data)
            if query is None or reply.question.lower() != query.question.lower():
                query = _query(random.choice(DNS_QUERIES))
            assert query is not None
            if random.random() < 0.2:
                data = filter_bindings(data, h3=False, ipv4_hints=random.random() < 0.5, ipv6_hints=False)
            if reply.opt is not None:
                data = without_edns(data)
            answer = Answer(data, parse_reply(data), query, 0.0)
        except BadReply:
            continue
        limit = random.choice((512, 1232, 65535))
        assert len(answer.render(query, random.random() * 1000, limit)) <= max(limit, 12 + 255 + 4 + 11)
    return OTHER_INPUTS // 2 * 2


def _query(data: bytes) -> Query | None:
    try:
        query = parse_query(bytes(data))
        if query is not None:
            check_name(query)
    except BadQuery as bad:
        assert len(bad.reply()) >= 12
        return None
    return query


DNS_QUERIES = [ask(), ask("www.example.com", "HTTPS", payload=1232), ask("a.b.c", "AAAA", ednsflags=0x8000)]
DNS_REPLIES = [
    reply(ask(), "example.com. 300 IN A 192.0.2.1", "example.com. 300 IN A 192.0.2.2", edns=0),
    reply(
        ask(qtype="HTTPS"), "example.com. 60 IN HTTPS 1 . alpn=h3,h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1", edns=0
    ),
    reply(ask(), rcode="NXDOMAIN", authority=["example.com. 900 IN SOA ns.example.com. a.example.com. 1 2 3 4 30"]),
    reply(ask(), "example.com. 60 IN CNAME www.example.com.", "www.example.com. 60 IN A 192.0.2.1"),
]

TARGETS: dict[str, tuple[int, Callable[[Random], int]]] = {
    "stack": (6, stack),
    "flow_key": (3, flow),
    "fragments": (3, fragments),
    "codecs": (3, codecs),
    "socks5": (3, socks),
    "dns": (3, dns),
    "sniff": (1, sniff),
}
"""Name -> (weight, target)."""
