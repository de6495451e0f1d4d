"""ring -> stack, stack -> tun: the I/O edge of the stack, and its only timer.

    1. the master rings the doorbell (only while this worker sleeps); `_on_doorbell`
    2. `_serve` pulls packets, gives each to the stack where it lies (ring or pool slot), and returns its slot
    3. after the batch the stack sends the ACKs that are due; the entries go back to the master
    4. before it sleeps the worker looks again for LOOKS turns of the loop, yielding the processor each time: packets come
       in trains, and waking a halted processor costs more than many looks (docs/performance.md)
    5. `transmit` writes each outbound packet to the tun, at any time: writes are atomic and need no ring back

Slot memory is valid only while the stack processes the packet: whoever keeps bytes copies them.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Sequence
from time import monotonic

from shared.buffer import Buffer
from shared.metrics import Cell, Counters, Histogram, observe
from shared.ring import Ring
from shared.system import clear_doorbell
from shared.wire.utun import FAMILY_LEN, family_of
from shared.wire.virtio import HEADER_LEN
from workers.stack.stack import Stack

__all__ = ["Link"]

log = logging.getLogger(__name__)

BATCH = 64
"""Packets served before sockets get their turn."""
LOOKS = 100
"""Turns of the event loop without a packet before the worker sleeps; in each it offers its processor to others."""
TIMER_STEP = 0.001  # seconds; libuv's timers have no finer ones
TICK = 0.1  # seconds; the longest a timer or a lost doorbell waits

_PACKETS_IN = int(Cell.PACKETS_IN)
"""A plain integer: an attribute of an Enum and its conversion cost more than the rest of the count."""


class Link:
    """Joins the rings, the stack and the tun of one worker. `stack` is assigned by the composition root before `start`."""

    stack: Stack

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        ring: Ring,
        free_ring: Ring,
        slots: Sequence[memoryview],
        doorbell: int,
        tun_fd: int,
        header_len: int,
        counters: Counters,
    ) -> None:
        self._loop = loop
        self._ring = ring
        self._free_ring = free_ring
        self._slots = slots
        self._doorbell = doorbell
        self._tun_fd = tun_fd
        self._virtio = header_len == HEADER_LEN
        self._utun = header_len == FAMILY_LEN
        self._counters = counters
        self._looking = False
        self._looks_left = 0
        self._seen_out = 0  # packets written when `_serve` last looked
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._packets_out = 0
        self._bytes_out = 0
        self._tun_down = False

    def start(self) -> None:
        """Begin to serve."""
        self._loop.add_reader(self._doorbell, self._on_doorbell)
        self._set_timer(now := monotonic(), now)
        self._serve()

    def close(self) -> None:
        """Stop serving; the descriptors stay open."""
        self._loop.remove_reader(self._doorbell)
        if self._timer is not None:
            self._timer.cancel()

    def serve_until(self, entry: int) -> None:
        """Serve the ring up to an entry of its stream, which the master has published."""
        while self._ring.position < entry:
            self._serve_batch(monotonic())

    # inbound

    def _on_doorbell(self) -> None:
        clear_doorbell(self._doorbell)
        if not self._looking:  # otherwise the next look is already scheduled
            self._serve()

    def _serve(self) -> None:
        """Serve a batch, then look again or sleep."""
        if self._serve_batch(monotonic()):
            self._looks_left = LOOKS
        elif self._packets_out != self._seen_out:  # the turn was used for sockets
            self._seen_out = self._packets_out
        elif self._looks_left:
            self._looks_left -= 1
            os.sched_yield()
        elif self._ring.try_sleep():
            self._looking = False
            return
        self._looking = True
        self._loop.call_soon(self._serve)

    def _serve_batch(self, now: float) -> int:
        """Give at most BATCH packets to the stack; returns how many there were."""
        ring, free_ring, slots, process = self._ring, self._free_ring, self._slots, self.stack.process
        inline = ring.inline
        count = 0
        while count < BATCH:
            item = ring.pull()
            if item is None:
                break
            count += 1
            index, length, slot = item
            try:
                if slot < 0:
                    process(inline[index][:length], now)
                else:
                    process(slots[slot][:length], now)
            except Exception:
                # A defect of ours must cost one packet, not the worker and all its flows.
                self._counters[Cell.CALLBACK_ERRORS] += 1
                log.exception("a packet of %d bytes was not processed", length)
            if slot >= 0:
                free_ring.push(0, slot)
        if count:
            ring.release()
            self._guard(self.stack.flush, now)
            self._counters[_PACKETS_IN] += count
        return count

    def _guard(self, step: Callable[[float], None], now: float) -> None:
        """Call a step of the stack; a defect in it must not end the chain of looks and timers that serves all flows."""
        try:
            step(now)
        except Exception:
            self._counters[Cell.CALLBACK_ERRORS] += 1
            log.exception("a step of the stack failed")

    # timer

    def rearm(self, deadline: float) -> None:
        """Bring the timer forward: the stack has a deadline (monotonic seconds) before all others."""
        if deadline < self._timer_at - TIMER_STEP:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(deadline, monotonic())

    def _set_timer(self, deadline: float, now: float) -> None:
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(deadline - now, TIMER_STEP), self._on_timer)

    def _on_timer(self) -> None:
        now = monotonic()
        observe(self._counters, Histogram.LOOP_LAG, max(now - self._timer_at, 0.0))
        self._guard(self.stack.timeout, now)
        self._publish(now)
        if not self._looking:
            # Also the safety net of the ring's sleep protocol: a lost wake-up costs at most one TICK.
            self._ring.wake()
            self._serve()
        deadline = self.stack.next_timeout()
        self._set_timer(min(deadline if deadline is not None else now + TICK, now + TICK), now)

    def _publish(self, now: float) -> None:
        """Bring the counters that are kept here, off the packet path, into shared memory."""
        counters = self._counters
        counters[Cell.PACKETS_OUT] += self._packets_out
        counters[Cell.BYTES_OUT] += self._bytes_out
        counters[Cell.HEARTBEAT] = int(now * 1000)
        self._packets_out = self._bytes_out = 0

    # outbound

    def transmit(self, parts: Sequence[Buffer]) -> None:
        """Write one packet (virtio header first) to the tun. A refused packet is counted; TCP will send it again."""
        try:
            if self._virtio:
                self._bytes_out += os.writev(self._tun_fd, parts) - HEADER_LEN
            elif self._utun:
                family = family_of(parts[0][HEADER_LEN] >> 4)
                packet = [family, memoryview(parts[0])[HEADER_LEN:], *parts[1:]]
                self._bytes_out += os.writev(self._tun_fd, packet) - FAMILY_LEN
            else:
                self._bytes_out += os.writev(self._tun_fd, [memoryview(parts[0])[HEADER_LEN:], *parts[1:]])
            self._packets_out += 1
        except OSError as error:
            self._counters[Cell.DROP_TUN_WRITE] += 1
            if not self._tun_down and error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                self._tun_down = True
                log.warning("the tun refuses packets: %s (told once)", error.strerror)
