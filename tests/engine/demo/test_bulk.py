"""Bulk transfers: right ones are counted, and every kind of damage is found."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.demo import bulk
from engine.demo.bulk import PERIOD, PIECE_SIZE, KeyedStream, TransferError

Damage = Callable[[int, bytes], bytes]
"""Given position and bytes of a piece on its way, returns what arrives."""

HEADER_SIZE = 17
SECONDS = 0.05


@contextmanager
def served() -> Iterator[socket.socket]:
    """The client's end of a flow whose other end is served."""
    client, server = socket.socketpair()

    def serve() -> None:
        with server:
            try:
                bulk.serve(server)
            except OSError:  # the client's test has closed the flow
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield client
    finally:
        client.close()
        thread.join()


@contextmanager
def served_through(upwards: Damage, downwards: Damage) -> Iterator[socket.socket]:
    """As `served`, by way of somebody who changes what passes."""

    def relay(source: socket.socket, sink: socket.socket, damage: Damage) -> None:
        at = 0
        while True:
            try:
                data = source.recv(65536)
                sink.sendall(damage(at, data)) if data else sink.shutdown(socket.SHUT_WR)
            except OSError:  # an end is closed
                return
            if not data:
                return
            at += len(data)

    near, far = socket.socketpair()
    with served() as server, far, near:
        threads = [
            threading.Thread(target=relay, args=(far, server, upwards)),
            threading.Thread(target=relay, args=(server, far, downwards)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield near
        finally:
            for end in near, far, server:
                end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def unharmed(at: int, data: bytes) -> bytes:
    return data


def flip(position: int) -> Damage:
    def damage(at: int, data: bytes) -> bytes:
        if not at <= position < at + len(data):
            return data
        changed = bytearray(data)
        changed[position - at] ^= 1
        return bytes(changed)

    return damage


def lose_the_byte(position: int) -> Damage:
    def damage(at: int, data: bytes) -> bytes:
        return data[: position - at] + data[position - at + 1 :] if at <= position < at + len(data) else data

    return damage


@given(st.binary(min_size=16, max_size=16), st.integers(0, 3 * PERIOD), st.integers(1, 2000))
def test_stream_is_the_same_however_it_is_cut(key: bytes, at: int, size: int) -> None:
    stream = KeyedStream(key)
    whole = bytes(stream.piece(at, size))
    assert whole == b"".join(bytes(stream.piece(at + i, 1)) for i in range(size))
    assert whole == bytes(KeyedStream(key).piece(at + PERIOD, size))
    assert stream.first_difference(at, memoryview(whole)) is None


def test_pieces_of_full_size_at_the_end_of_the_period() -> None:
    assert len(KeyedStream(b"k").piece(PERIOD - 1, PIECE_SIZE)) == PIECE_SIZE


@pytest.mark.parametrize("key", [b"other", b"k"])
def test_stream_of_another_key_or_place_differs(key: bytes) -> None:
    at = 4096 if key == b"k" else 0
    assert KeyedStream(b"k").first_difference(0, KeyedStream(key).piece(at, 64)) is not None


def test_first_difference_is_the_position_in_the_stream() -> None:
    stream = KeyedStream(b"k")
    data = bytearray(stream.piece(1000, 100))
    data[42] ^= 0x80
    assert stream.first_difference(1000, memoryview(data)) == 1042


@pytest.mark.parametrize("transfer", [bulk.upload, bulk.download])
def test_transfer_returns_what_it_has_reported(transfer: Callable[..., int]) -> None:
    pieces: list[int] = []
    with served() as flow:
        size = transfer(flow, SECONDS, pieces.append)
    assert size == sum(pieces) > PERIOD


def test_upload_finds_a_flipped_bit() -> None:
    with (
        served_through(flip(HEADER_SIZE + 70_000), unharmed) as flow,
        pytest.raises(TransferError, match="position 70000 "),
    ):
        bulk.upload(flow, SECONDS, lambda size: None)


def test_upload_finds_a_lost_byte() -> None:
    with served_through(lose_the_byte(HEADER_SIZE + 70_000), unharmed) as flow, pytest.raises(TransferError):
        bulk.upload(flow, SECONDS, lambda size: None)


def test_download_finds_a_flipped_bit() -> None:
    with served_through(unharmed, flip(70_000)) as flow, pytest.raises(TransferError, match="position 70000 "):
        bulk.download(flow, SECONDS, lambda size: None)


def test_download_finds_bytes_too_many() -> None:
    def repeat_the_first(at: int, data: bytes) -> bytes:
        return data + data if at == 0 else data

    with served_through(unharmed, repeat_the_first) as flow, pytest.raises(TransferError):
        bulk.download(flow, SECONDS, lambda size: None)


def test_download_that_ends_early_is_an_error() -> None:
    client, server = socket.socketpair()
    with client, server:
        server.shutdown(socket.SHUT_WR)
        with pytest.raises(TransferError, match="0 bytes received"):
            bulk.download(client, SECONDS, lambda size: None)


def test_server_refuses_a_flow_that_ends_within_its_header() -> None:
    client, server = socket.socketpair()
    with client, server:
        client.sendall(b"U" + b"half")
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError, match="4 of 16"):
            bulk.serve(server)
