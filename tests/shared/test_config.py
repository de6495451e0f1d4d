"""shared/config.py and shared/control.py: what a worker is told survives the way there, and no password leaks."""

import msgspec
import pytest

from shared import control
from shared.config import Policy, ProxyConfig, ProxyOutbound, StackConfig, UdpConfig, WorkerConfig

PROXY = ProxyConfig(
    kind="socks5", host="2001:db8::10", port=1080, username="anna", password="s3cret", addresses=("2001:db8::10",)
)
CONFIG = WorkerConfig(
    index=2,
    places=4,
    slots=512,
    ring_entries=1024,
    policy=Policy(outbounds=(ProxyOutbound(tag="proxy", proxy=PROXY),)),
    stack=StackConfig(mtu=65535, offload=True),
    udp=UdpConfig(idle_timeout=30.0),
    uid=60922,
    secret=bytes(range(16)),
)


def test_configure_survives_the_channel() -> None:
    assert control.decode_from_master(control.encode(control.Configure(CONFIG))) == control.Configure(CONFIG)


@pytest.mark.parametrize(
    "message", [control.Ready(4711), control.Failed("no such user"), control.UdpSupport(False, "refused")]
)
def test_worker_message_survives_the_channel(message: object) -> None:
    assert control.decode_from_worker(control.encode(message)) == message


def test_message_of_the_wrong_direction_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        control.decode_from_master(control.encode(control.Ready(1)))
    with pytest.raises(msgspec.ValidationError):
        control.decode_from_worker(control.encode(control.Stop()))


@pytest.mark.parametrize("show", [repr, str, lambda value: f"{value}", lambda value: f"{value!r}"])
@pytest.mark.parametrize("value", [PROXY, CONFIG, control.Configure(CONFIG)])
def test_password_is_never_shown(show: object, value: object) -> None:
    assert callable(show)
    assert "s3cret" not in show(value)


def test_proxy_reads_as_its_url() -> None:
    assert str(PROXY) == "socks5://anna:***@[2001:db8::10]:1080"
    assert str(ProxyConfig(kind="http", host="proxy.example", port=8080)) == "http://proxy.example:8080"


def test_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        CONFIG.index = 3  # type: ignore[misc]
