"""The engine beside its peers, in one interleaved run: `python -m loadtests.bench`.

    __main__          options, the rounds, what is printed and written
    lab               the two namespaces, servers and peers in them
    servers           SOCKS server, iperf3, HTTP, echo: what the load is sent to
    peers             how each peer is configured and started
    measure           what is measured, one step after the other
    echo_server, connection_load, datagram_load    programs that run inside the lab
    results           records, medians, ratios, targets: pure
    report            tables, JSON, plot

    for each round: for each peer: a new lab -> servers -> peer -> measures -> everything down again

Peers take turns within a round, so that a machine that is slow for a minute is slow for all of them.
"""
