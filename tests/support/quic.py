"""Builds a client's protected Initial packets with the HKDF of a library, apart from the code under test."""

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

__all__ = ["DESTINATION", "V1", "V2", "crypto", "initial", "varint"]

V1 = 0x00000001
V2 = 0x6B3343CF
DESTINATION = bytes.fromhex("8394c8f03e515708")
SALTS = {V1: "38762cf7f55934b34d179ae6a4c80cadccbb7f0a", V2: "0dede3def700a6db819381be6e269dcbf9bd2ed9"}
LABELS = {V1: "quic", V2: "quicv2"}
TYPES = {V1: 0, V2: 1}


def varint(value: int) -> bytes:
    """RFC 9000, 16, in as few bytes as possible."""
    bits = next(bits for bits in range(4) if value < 1 << 8 * (1 << bits) - 2)
    size = 1 << bits
    return (value | bits << 8 * size - 2).to_bytes(size, "big")


def crypto(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame."""
    return b"\x06" + varint(offset) + varint(len(data)) + data


def initial(
    frames: bytes,
    *,
    version: int = V1,
    destination: bytes = DESTINATION,
    key_destination: bytes | None = None,
    number: int = 0,
    number_size: int = 4,
    token: bytes = b"",
    size: int = 1200,
) -> bytes:
    """One Initial packet with `frames`, padded to `size` bytes; keys of `key_destination` where it differs."""
    key, iv, header_key = _keys(version, destination if key_destination is None else key_destination)
    first = 0xC0 | TYPES[version] << 4 | number_size - 1
    head = bytes((first,)) + version.to_bytes(4, "big") + bytes((len(destination),)) + destination + b"\0"
    head += varint(len(token)) + token
    payload = frames.ljust(max(size - len(head) - 2 - number_size - 16, 4), b"\0")
    head += (number_size + len(payload) + 16 | 0x4000).to_bytes(2, "big")
    number_bytes = number.to_bytes(number_size, "big")
    nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
    sealed = AESGCM(key).encrypt(nonce, payload, head + number_bytes)
    sample = (number_bytes + sealed)[4:20]
    mask = Cipher(algorithms.AES(header_key), modes.ECB()).encryptor().update(sample)
    hidden = bytes(a ^ b for a, b in zip(number_bytes, mask[1:], strict=False))
    return bytes((first ^ mask[0] & 0x0F,)) + head[1:] + hidden + sealed


def _keys(version: int, destination: bytes) -> tuple[bytes, bytes, bytes]:
    extract = HMAC(bytes.fromhex(SALTS[version]), SHA256())
    extract.update(destination)
    secret = _expand(extract.finalize(), "client in", 32)
    label = LABELS[version]
    return _expand(secret, f"{label} key", 16), _expand(secret, f"{label} iv", 12), _expand(secret, f"{label} hp", 16)


def _expand(secret: bytes, label: str, size: int) -> bytes:
    full = b"tls13 " + label.encode()
    return HKDFExpand(SHA256(), size, size.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0").derive(secret)
