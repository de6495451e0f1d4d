"""The virtio-net header that precedes every packet on a tun opened with IFF_VNET_HDR.

struct virtio_net_hdr {            /* include/uapi/linux/virtio_net.h, 10 bytes, host byte order */
    __u8  flags;                   /* 0 */
    __u8  gso_type;                /* 1 */
    __u16 hdr_len;                 /* 2  length of all headers */
    __u16 gso_size;                /* 4  payload bytes of each segment */
    __u16 csum_start;              /* 6  where checksumming begins */
    __u16 csum_offset;             /* 8  where, after csum_start, the checksum goes */
};
"""

from struct import Struct

__all__ = [
    "F_DATA_VALID",
    "F_NEEDS_CSUM",
    "GSO_ECN",
    "GSO_NONE",
    "GSO_TCPV4",
    "GSO_TCPV6",
    "GSO_UDP_L4",
    "HEADER",
    "HEADER_LEN",
    "HEADER_NONE",
]

HEADER = Struct("=BBHHHH")
HEADER_LEN = HEADER.size  # 10
HEADER_NONE = bytes(HEADER_LEN)  # no offload: checksums complete, one segment

F_NEEDS_CSUM = 1  # the checksum field holds just the pseudo-header sum: the packet comes from this machine
F_DATA_VALID = 2  # the kernel has verified the checksum

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
