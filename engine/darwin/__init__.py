"""What macOS has of its own: layouts, messages, and the calls that carry them.

    interface   ioctl numbers and structs of utun and its addresses                            pure
    sockaddr    socket addresses, link addresses, masks that the kernel has trimmed             pure
    route       routing messages, in both directions; dumps of the routing table                pure
    gateway     which route is the machine's own default                                        pure
    name_servers  what networksetup and scutil say about DNS, and what they are told           pure
    pcblist     the kernel's tables of TCP and UDP sockets                                      pure
    system      every system call and program; the one module that tests replace

Facts are those of xnu-11417 (macOS 15.4), little-endian LP64: the layouts of arm64 and x86-64 are equal. Constants are
Darwin's and never those of Python's modules, which have Linux's numbers on Linux, where all of this is tested.
"""
