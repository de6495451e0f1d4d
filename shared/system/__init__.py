"""What processes need of the operating system, and get in different ways: one name for each, picked here.

                    linux                                darwin
    memory          memfd                                a POSIX shared memory object, unlinked at once
    doorbell        eventfd, one descriptor              a pipe, its writing and its reading end
    message socket  SOCK_SEQPACKET                       SOCK_STREAM with a header before each message
    end of process  pidfd                                kqueue, EVFILT_PROC
    privileges      set*id, no_new_privs, PDEATHSIG      set*id; the end of the control channel is that of the master
    capabilities    few are kept                         there are none
    confinement     Landlock, seccomp                    none: the user alone
    way out         SO_BINDTODEVICE                      IP_BOUND_IF
    local ports     IP_LOCAL_PORT_RANGE                  as the kernel chooses

All of it but the kqueue and the bound sockets works on Linux too, where tests run the whole engine on it.
"""

import sys

__all__ = [
    "Doorbell",
    "ExitWatch",
    "MessageSocket",
    "bind_to_interface",
    "clear_doorbell",
    "confine",
    "create_memory",
    "drop_privileges",
    "file_limit",
    "keep_capabilities",
    "kernel_confinement",
    "message_pair",
    "message_socket",
    "open_doorbell",
    "ring_doorbell",
    "sealed_file",
    "take_any_port",
    "user_exists",
]

if sys.platform == "darwin":
    from shared.system.darwin import (
        Doorbell,
        ExitWatch,
        MessageSocket,
        bind_to_interface,
        clear_doorbell,
        confine,
        create_memory,
        drop_privileges,
        file_limit,
        keep_capabilities,
        kernel_confinement,
        message_pair,
        message_socket,
        open_doorbell,
        ring_doorbell,
        sealed_file,
        take_any_port,
        user_exists,
    )
else:
    from shared.system.linux import (
        Doorbell,
        ExitWatch,
        MessageSocket,
        bind_to_interface,
        clear_doorbell,
        confine,
        create_memory,
        drop_privileges,
        file_limit,
        keep_capabilities,
        kernel_confinement,
        message_pair,
        message_socket,
        open_doorbell,
        ring_doorbell,
        sealed_file,
        take_any_port,
        user_exists,
    )
