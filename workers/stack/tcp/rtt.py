"""Round-trip time and the timers derived from it (RFC 6298, RFC 8985 7.2)."""

__all__ = ["RTO_INITIAL", "RTO_MAX", "RoundTrip"]

RTO_INITIAL = 1.0  # seconds, RFC 6298 (2.1)
RTO_MIN = 0.2  # seconds; RFC 6298 (2.4) says 1, but Linux, BSD and Windows all use 0.2-0.3, and so must who competes with them
RTO_MAX = 60.0  # seconds, RFC 6298 (2.5)
PTO_MIN = 0.02  # seconds; a worker that is busy sees ACKs late, and a probe for an ACK that is in its queue is waste
_ALPHA = 1 / 8  # RFC 6298 (2.3)
_BETA = 1 / 4


class RoundTrip:
    """Estimator of one connection. All values in seconds."""

    __slots__ = ("_backoff", "_rto", "minimum", "probe_timeout", "smoothed", "variation")

    def __init__(self) -> None:
        self.smoothed = 0.0  # 0: no sample yet
        self.variation = 0.0
        self.minimum = 0.0
        self.probe_timeout = RTO_INITIAL
        self._rto = RTO_INITIAL
        self._backoff = 1

    @property
    def timeout(self) -> float:
        """The retransmission time-out, with back-off."""
        return min(self._rto * self._backoff, RTO_MAX)

    def sample(self, rtt: float) -> None:
        """Take in one measurement. It must not be of a retransmitted segment (Karn, RFC 6298 (3)); it ends the back-off."""
        if not self.smoothed:
            self.smoothed = self.minimum = rtt
            self.variation = rtt / 2
        else:
            self.variation += _BETA * (abs(self.smoothed - rtt) - self.variation)
            self.smoothed += _ALPHA * (rtt - self.smoothed)
            if rtt < self.minimum:
                self.minimum = rtt
        # Comparisons and not min and max: one of each round trip's costliest steps otherwise.
        # The floor is on the variation, as in Linux: a peer may hold an ACK back by 200 ms whatever the path's delay.
        spread = 4 * self.variation
        self._rto = rto = self.smoothed + (spread if spread > RTO_MIN else RTO_MIN)
        probe = 2 * self.smoothed
        if probe < PTO_MIN:
            probe = PTO_MIN
        self.probe_timeout = probe if probe < rto else rto
        self._backoff = 1

    def back_off(self) -> None:
        """Double the time-out (RFC 6298 (5.5))."""
        if self.timeout < RTO_MAX:
            self._backoff *= 2

    def reset_backoff(self) -> None:
        """New data was acknowledged: the path works again, though nothing could be measured."""
        self._backoff = 1
