"""Congestion control: CUBIC (RFC 9438), with the slow start of RFC 5681 and the initial window of RFC 6928.

All windows in bytes, all times in seconds. Loss detection is the sender's; here only the window is decided.
"""

__all__ = ["Cubic", "initial_window"]

_C = 0.4  # segments per second cubed, RFC 9438 (5.1)
_BETA = 0.7  # RFC 9438 (4.6)
_ALPHA_RENO = (
    3 * (1 - _BETA) / (1 + _BETA)
)  # growth that makes a Reno flow with our beta as fast as Reno, RFC 9438 (4.3)
_INFINITE = 1 << 62


def initial_window(mss: int) -> int:
    """Bytes that may be sent before the first acknowledgment (RFC 6928 2)."""
    return min(10 * mss, max(2 * mss, 14600))


class Cubic:
    """The congestion window of one connection."""

    __slots__ = ("_before", "_epoch_at", "_k", "_mss", "_reno", "_w_max", "ssthresh", "window")

    def __init__(self, mss: int) -> None:
        self._mss = mss
        self.window = initial_window(mss)
        self.ssthresh = _INFINITE
        self._w_max = 0.0  # window before the last reduction
        self._k = 0.0  # seconds from the epoch until the window is _w_max again
        self._reno = 0.0  # window that Reno would have
        self._epoch_at = -1.0  # start of the present growth; negative: none
        self._before = (0, 0, 0.0)  # window, ssthresh, _w_max before the last reduction

    def on_ack(self, acked: int, now: float, rtt: float) -> None:
        """`acked` bytes were acknowledged while the window was what held us back; not called during fast recovery."""
        if self.window < self.ssthresh:
            self.window += (
                acked  # slow start counts bytes (RFC 3465), else one ACK for 64 KiB would count as one segment
            )
            return
        mss = self._mss
        if self._epoch_at < 0:
            self._start_epoch(now)
        self._reno += _ALPHA_RENO * mss * acked / self.window
        target = self._cubic(now + rtt)
        if target > self.window:
            # RFC 9438 (4.4), target within [cwnd, 1.5 cwnd]
            self.window += int((min(target, 1.5 * self.window) - self.window) * acked / self.window)
        self.window = max(self.window, int(self._reno))

    def _start_epoch(self, now: float) -> None:
        self._epoch_at = now
        self._reno = float(self.window)
        if self._w_max <= self.window:
            self._w_max = float(self.window)
        self._k = ((self._w_max - self.window) / self._mss / _C) ** (1 / 3)  # RFC 9438 (4.2), figure 2

    def _cubic(self, at: float) -> float:
        """The window the cubic function gives at time `at` (RFC 9438 (4.2), figure 1)."""
        t = at - self._epoch_at - self._k
        return _C * t * t * t * self._mss + self._w_max

    def on_loss(self, flight: int) -> None:
        """Segments were lost of `flight` bytes outstanding; once per round trip (RFC 9438 (4.6), (4.7))."""
        self._reduce(flight)
        self.window = self.ssthresh

    def on_timeout(self, flight: int) -> None:
        """The retransmission timer expired with `flight` bytes outstanding: start again (RFC 5681 3.1)."""
        self._reduce(flight)
        self.window = self._mss

    def undo(self) -> None:
        """Nothing had been lost: take the last reduction back (RFC 3708, RFC 9438 (4.9.2))."""
        window, ssthresh, w_max = self._before
        self.window = max(self.window, window)
        self.ssthresh = max(self.ssthresh, ssthresh)
        self._w_max = max(self._w_max, w_max)
        self._epoch_at = -1.0

    def _reduce(self, flight: int) -> None:
        # Fast convergence: a flow that loses before it has its old share back leaves room for newer ones.
        window = self.window
        self._before = (window, self.ssthresh, self._w_max)
        self._w_max = window * (1 + _BETA) / 2 if window < self._w_max else float(window)
        self._epoch_at = -1.0
        self.ssthresh = max(int(min(window, flight) * _BETA), 2 * self._mss)

    def set_mss(self, mss: int, max_segment: int) -> None:
        """The path takes smaller segments now."""
        self._mss = mss
