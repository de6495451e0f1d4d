"""What both the master and the workers need, and nothing else.

    kernel -> engine/tun -> engine/ingress -> shared/pool + ring -> workers/link -> stack -> relay -> upstream -> SOCKS5
    kernel <------------------ tun fd (inherited) <---------------- workers/link <- stack <- relay <- upstream <- SOCKS5

Import rule: `engine` and `workers` import `shared`, never one another (tests/test_architecture.py).

Vocabulary
    packet    one read from the tun: a 10-byte virtio-net header, then an IPv4 or IPv6 packet of up to 64 KiB
    flow      a TCP connection (4-tuple) or a UDP source endpoint
    shard     the share of all flows that one worker process carries
    slot      a fixed piece of shared memory that holds one packet
    pool      all slots, in one memfd mapped by the master and every worker
    ring      single-producer single-consumer queue of descriptors (slot, length) in the same memfd
    doorbell  an eventfd by which the producer of a ring wakes its consumer
"""
