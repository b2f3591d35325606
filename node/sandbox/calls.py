"""Which system calls each room may make. What is not listed here is refused.

Landlock has holes that only these rules close: sockets of other protocols than TCP (MPTCP reaches any port),
fast open, metadata (chmod, chown, times, extended attributes), signals on older kernels, System V and POSIX
message queues, and input pushed into the terminal from which a node was started.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from node.sandbox.seccomp import ALLOWED, REFUSED, UNKNOWN, Rule, Rules, Test

_MEMORY = """
    brk mmap munmap mprotect mremap madvise msync mincore mlock mlock2 munlock membarrier memfd_create
    get_mempolicy set_mempolicy mbind pkey_alloc pkey_free pkey_mprotect
"""
_THREADS = """
    futex futex_waitv set_robust_list get_robust_list set_tid_address gettid rseq arch_prctl exit exit_group
    sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler sched_setscheduler
    sched_get_priority_max sched_get_priority_min sched_getattr getcpu restart_syscall
"""
_SIGNALS = """
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending rt_sigsuspend sigaltstack pause
"""
_TIME = """
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getitimer setitimer alarm
    timer_create timer_delete timer_getoverrun timer_gettime timer_settime
    timerfd_create timerfd_gettime timerfd_settime
"""
_WHO_AM_I = """
    getpid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getgroups getresuid getresgid capget
    getrlimit setrlimit getrusage getpriority uname sysinfo getrandom umask
"""
_DESCRIPTORS = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range
    dup dup2 dup3 pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait
    epoll_pwait epoll_pwait2 eventfd eventfd2 fsync fdatasync ftruncate fallocate fadvise64 flock readahead
    sync_file_range copy_file_range sendfile splice
"""
_FILES = """
    open openat stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat
    getdents getdents64 getcwd chdir fchdir statfs fstatfs
"""
_CONFINING = "landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp"
_CHILDREN = "wait4 waitid pidfd_open"
_PASSED_DESCRIPTORS = "sendmsg recvmsg recvfrom getsockname getpeername getsockopt shutdown"
_TCP = "bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt shutdown recvfrom recvmsg"
_FOLDERS = "creat mkdir mkdirat rename renameat renameat2 rmdir unlink unlinkat"

_CLONE_THREAD, _CLONE_NEW, _MSG_FASTOPEN, _SOCKET_TYPE = 0x00010000, 0x7E020000, 0x20000000, 0xF
_AF_INET, _AF_INET6, _SOCK_STREAM, _IPPROTO_TCP = 2, 10, 1, 6
_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451
_F_SETSIG, _F_SETOWN, _F_SETOWN_EX = 10, 8, 15  # a signal to another process
_HARMLESS_FCNTL = (
    *(command for command in range(17) if command not in (_F_SETSIG, _F_SETOWN, _F_SETOWN_EX)),
    *(36, 37, 38),  # locks that belong to an open file
    *range(1030, 1035),  # F_DUPFD_CLOEXEC, the size of a pipe, seals
)
_PR_SET_DUMPABLE = 4
_HARMLESS_PRCTL = (
    *(1, 2, 3, 15, 16, 21, 22, 23, 29, 30),  # death signal, name, seccomp, timer slack
    *(36, 37, 38, 39),  # adopting orphans, no new privileges
    0x53564D41,  # names of anonymous memory
)


def _each(*groups: str) -> dict[str, Rule]:
    return dict.fromkeys(" ".join(groups).split(), ALLOWED)


_EVERY_ROOM: dict[str, Rule] = {
    **_each(_MEMORY, _THREADS, _SIGNALS, _TIME, _WHO_AM_I, _DESCRIPTORS, _FILES, _CONFINING),
    "clone3": UNKNOWN,  # its flags lie in memory, where no filter sees them: the C library then uses clone
    "openat2": UNKNOWN,
    "ioctl": Rule(((Test(1, (_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX)),),)),
    "fcntl": Rule(((Test(1, _HARMLESS_FCNTL),),)),
    "prctl": Rule(((Test(0, _HARMLESS_PRCTL),), (Test(0, (_PR_SET_DUMPABLE,)), Test(1, (0,))))),
    "prlimit64": Rule(((Test(0, (0,)),),)),
}
_THREADS_ONLY = Rule(((Test(0, (_CLONE_THREAD,), _CLONE_THREAD), Test(0, (0,), _CLONE_NEW)),))
_FORKS = Rule(((Test(0, (0,), _CLONE_NEW),),))


def template() -> Rules:
    """Before an enclave's own rules: it forks, and passes descriptors over the socket that it was given."""
    return {**_EVERY_ROOM, **_each(_CHILDREN, _PASSED_DESCRIPTORS), "clone": _FORKS}


def keyroom() -> Rules:
    """As the template: a child opens each round."""
    return template()


def alone() -> Rules:
    """An enclave while its task runs, a process that seals for it, the key room's child: threads and pipes, no more.

    Comes on top of the rules of the process that forked it.
    """
    return {**_EVERY_ROOM, **_each("wait4 waitid"), "clone": _THREADS_ONLY}


def supervisor(rooms: Sequence[int]) -> Rules:
    """Waits for the processes of its rooms, at least one, and ends them and no other."""
    return {**alone(), "kill": Rule(((Test(0, tuple(rooms)),),))}


def page() -> Rules:
    """Answers on the socket that it was given; it can make none, and reach nobody."""
    answers = _each("accept accept4 getsockname getpeername getsockopt setsockopt shutdown recvfrom")
    return {
        **_EVERY_ROOM,
        **answers,
        "clone": _THREADS_ONLY,
        "sendto": Rule(((Test(3, (0,), _MSG_FASTOPEN), Test(4, (0,))),)),  # to nobody but who asked
    }


def ceremony() -> Rules:
    """A key room of the ceremony: as :func:`alone`, and it makes and erases files."""
    return {**alone(), **_each(_FOLDERS, "link linkat")}


def listening_relay() -> Rules:
    """The relay, but for new places to listen at."""
    return {**relay(), "bind": REFUSED, "listen": REFUSED}


def relay() -> Rules:
    """TCP over IPv4 and IPv6, and files in its own folder; of other processes it can end those enclaves whose
    descriptors the template handed to it."""
    itself = Rule(((Test(0, (os.getpid(),)),),))
    stream = (Test(0, (_AF_INET, _AF_INET6)), Test(1, (_SOCK_STREAM,), _SOCKET_TYPE), Test(2, (0, _IPPROTO_TCP)))
    return {
        **_EVERY_ROOM,
        **_each(_TCP, _FOLDERS, "pidfd_send_signal"),
        **dict.fromkeys(("kill", "tgkill"), itself),
        "clone": _THREADS_ONLY,
        # libzmq ends the process when a netlink socket is refused with any other error
        "socket": Rule((stream,), errno.EOPNOTSUPP),
        "sendto": Rule(((Test(3, (0,), _MSG_FASTOPEN),),)),
        "sendmsg": Rule(((Test(2, (0,), _MSG_FASTOPEN),),)),
    }
