"""engine/proxy_url.py: every way to write a proxy, and a sentence for every way to get it wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.proxy_url import ProxyUrlError, parse_proxy_url
from shared.config import ProxyConfig


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("socks5://127.0.0.1:1080", ProxyConfig("socks5", "127.0.0.1", 1080)),
        ("127.0.0.1:1080", ProxyConfig("socks5", "127.0.0.1", 1080)),
        ("localhost", ProxyConfig("socks5", "localhost", 1080)),
        ("socks5://proxy.example/", ProxyConfig("socks5", "proxy.example", 1080)),
        ("socks5h://proxy.example:9050", ProxyConfig("socks5", "proxy.example", 9050)),
        ("SOCKS5://Proxy.Example:1", ProxyConfig("socks5", "proxy.example", 1)),
        ("socks://h:65535", ProxyConfig("socks5", "h", 65535)),
        ("socks4://h", ProxyConfig("socks4", "h", 1080)),
        ("socks4a://me@h:9050", ProxyConfig("socks4", "h", 9050, username="me", password="")),
        ("http://h", ProxyConfig("http", "h", 8080)),
        ("http://u:p@h:3128", ProxyConfig("http", "h", 3128, username="u", password="p")),
        ("socks5://[2001:db8::1]:1080", ProxyConfig("socks5", "2001:db8::1", 1080)),
        ("[::1]", ProxyConfig("socks5", "::1", 1080)),
        ("socks5://u%40x:p%2F%3A%40%C3%A9@h:1", ProxyConfig("socks5", "h", 1, username="u@x", password="p/:@é")),
        ("u:p@h:1", ProxyConfig("socks5", "h", 1, username="u", password="p")),
    ],
)
def test_url_names_a_proxy(url: str, expected: ProxyConfig) -> None:
    assert parse_proxy_url(url) == expected


BAD = [
    ("ftp://127.0.0.1:1080", "'ftp' is not a kind of proxy"),
    ("https://h:443", "'https' is not a kind of proxy"),
    ("socks5://", "host is missing"),
    ("socks5://:1080", "host is missing"),
    ("", "host is missing"),
    ("socks5://127.0.0.1:0", "port must be a number from 1 to 65535"),
    ("socks5://127.0.0.1:65536", "port must be a number from 1 to 65535"),
    ("socks5://127.0.0.1:-1", "port must be a number from 1 to 65535"),
    ("socks5://127.0.0.1:abc", "port must be a number from 1 to 65535"),
    ("socks5://2001:db8::1:1080", "port must be a number from 1 to 65535"),
    ("socks5://[2001:db8::1:1080", "brackets"),
    ("socks5://[zz]:1080", "brackets"),
    ("socks5://127.0.0.1:1080/path", "nothing may follow the port"),
    ("socks5://127.0.0.1:1080?x=1", "nothing may follow the port"),
    ("socks5://127.0.0.1:1080#x", "nothing may follow the port"),
    ("socks5://user@127.0.0.1:1080", "wants a password of 1 to 255 bytes"),
    ("socks5://user:@127.0.0.1:1080", "wants a password of 1 to 255 bytes"),
    ("socks5://:secret@127.0.0.1:1080", "wants a user name of 1 to 255 bytes"),
    ("socks5://" + "u" * 256 + ":secret@h", "wants a user name of 1 to 255 bytes"),
    ("socks5://u:" + "%C3%A9" * 128 + "@h", "wants a password of 1 to 255 bytes"),
    ("socks5://u:%FFsecret@h", "must be UTF-8"),
    ("socks5://u:\udcffsecret@h", "must be UTF-8"),
]


@pytest.mark.parametrize(("url", "sentence"), BAD, ids=[ascii(url)[:40] for url, _ in BAD])
def test_bad_url_is_one_sentence_without_the_password(url: str, sentence: str) -> None:
    with pytest.raises(ProxyUrlError) as raised:
        parse_proxy_url(url)
    text = str(raised.value)
    assert text.startswith("--proxy: ")
    assert sentence in text
    assert "\n" not in text
    assert "secret" not in text


@given(
    url=st.text(max_size=60)
    | st.builds("{}://{}:{}@{}:{}".format, *[st.text(max_size=12)] * 4, st.integers(-9, 99999) | st.text(max_size=6))
)
def test_any_text_is_a_proxy_or_the_documented_error(url: str) -> None:
    try:
        proxy = parse_proxy_url(url)
    except ProxyUrlError:
        return
    assert proxy.host
    assert 1 <= proxy.port <= 65535
