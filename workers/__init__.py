"""One process of this package is one shard: link (ring <-> tun) + stack (sans-IO TCP/IP) + relay + upstream (SOCKS)."""
