"""The handler of a connection that has none yet, or none any more."""

from workers.stack import CloseReason, TcpHandler

__all__ = ["NOBODY"]


class _Nobody(TcpHandler):
    """Hears nothing and takes nothing. A closed connection points here, so that it does not keep the relay's part alive."""

    def on_data(self, data: memoryview, /) -> int:
        return 0

    def on_eof(self) -> None:
        pass

    def on_send_space(self) -> None:
        pass

    def on_closed(self, reason: CloseReason, /) -> None:
        pass


NOBODY = _Nobody()
