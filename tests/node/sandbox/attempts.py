"""What somebody who took over a room would try. Each attempt is one short function.

An attempt returns if it went through, and raises OSError if it was refused. Outside any room all of them go
through; those that need root's powers say so, for an ordinary user is refused them outside too.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

from node.sandbox.kernel import prctl, syscall
from node.sandbox.seccomp import this_machine
from tests.node.sandbox.scene import ENCLAVE, KEYROOM, RELAY, ROOMS, SECRET, Attempt, Scene

CALLS = this_machine().calls
SECONDS = 5.0
_NEW_USER, _NEW_NETWORK, _MSG_FASTOPEN, _MPTCP, _SEIZE = 0x10000000, 0x40000000, 0x20000000, 262, 0x4206

ATTEMPTS: list[Attempt] = []
_Act = Callable[[Scene], object]


def attempt(group: str, name: str, *works_in: str, needs_root: bool = False) -> Callable[[_Act], _Act]:
    def add(act: _Act) -> _Act:
        ATTEMPTS.append(Attempt(group, name, act, frozenset(works_in), needs_root))
        return act

    return add


def call(name: str, *arguments: int | bytes | None) -> int:
    return syscall(CALLS[name], *arguments)


def path(text: Path) -> bytes:
    return os.fsencode(text) + b"\0"


def make(file: Path) -> None:
    file.open("x").close()
    file.unlink()


# ---- files ----------------------------------------------------------------------------------------------

FILES = "files"
for _name, _act, _works in (
    ("read /etc/passwd", lambda s: Path("/etc/passwd").read_bytes(), ()),
    ("list /", lambda s: os.listdir("/"), ()),
    ("read another party's sealed identity", lambda s: (s.other / "identity.sealed").read_bytes(), ()),
    ("list another party's home", lambda s: os.listdir(s.other), ()),
    ("read the sealed secret key", lambda s: s.secret_key.read_bytes(), (KEYROOM,)),
    ("read the node's sealed identity", lambda s: (s.home / "identity.sealed").read_bytes(), (RELAY, KEYROOM)),
    ("read the hospital's data", lambda s: s.data.read_bytes(), (ENCLAVE,)),
    ("read another file of the hospital's", lambda s: (s.outside / "note").read_bytes(), ()),
    ("follow a symbolic link out of a folder of its own", lambda s: (s.folder / "way-out").read_bytes(), ()),
    ("climb out with ..", lambda s: (s.folder / "../../.." / s.outside.name / "note").read_bytes(), ()),
    ("write a file into /tmp", lambda s: make(Path(f"/tmp/wardtree-{os.getpid()}")), ()),
    ("write into shared memory", lambda s: make(Path(f"/dev/shm/wardtree-{os.getpid()}")), ()),
    ("write a file into the home", lambda s: make(s.home / f"made-{os.getpid()}"), ()),
    ("write a file into the relay's folder", lambda s: make(s.fresh()), (RELAY,)),
    ("append to the node's ledger", lambda s: (s.home / "ledger.jsonl").open("ab").close(), (RELAY,)),
    ("append to the ledger of openings", lambda s: s.openings.open("ab").close(), (KEYROOM,)),
    ("overwrite the data", lambda s: s.data.open("r+b").close(), ()),
    ("empty another file", lambda s: os.truncate(s.spare, 0), ()),
    ("delete a file of the node", lambda s: os.unlink(s.spare), ()),
    ("move a file of the node into the relay's folder", lambda s: os.rename(s.spare, s.fresh()), ()),
    ("make a hard link to a file of the node", lambda s: os.link(s.spare, s.fresh()), ()),
    ("leave a symbolic link for others to follow", lambda s: os.symlink("/etc/passwd", s.fresh()), ()),
    ("make a named pipe", lambda s: os.mkfifo(s.fresh()), ()),
    ("change a file's permissions", lambda s: os.chmod(s.data, 0o600), ()),
    ("change a file's times", lambda s: os.utime(s.data), ()),
):
    attempt(FILES, _name, *_works)(_act)
attempt(FILES, "read /etc/shadow", needs_root=True)(lambda s: Path("/etc/shadow").read_bytes())


@attempt(FILES, "watch another folder")
def _(scene: Scene) -> None:
    call("inotify_add_watch", call("inotify_init1", 0), path(scene.outside), 2)


@attempt(FILES, "mount a file system", needs_root=True)
def _(scene: Scene) -> None:
    call("mount", b"none\0", path(scene.outside), b"tmpfs\0", 0, None)
    call("umount2", path(scene.outside), 0)


@attempt(FILES, "change the root folder", needs_root=True)
def _(scene: Scene) -> None:
    os.chroot(scene.outside)


@attempt(FILES, "open a file by handle, around its folders", needs_root=True)
def _(scene: Scene) -> None:
    handle, mount = bytearray(struct.pack("=Ii", 128, 0) + bytes(128)), bytearray(4)
    buffer, number = (ctypes.c_char * len(handle)).from_buffer(handle), (ctypes.c_char * 4).from_buffer(mount)
    here = os.open(scene.outside, os.O_PATH)
    call("name_to_handle_at", here, b"note\0", ctypes.addressof(buffer), ctypes.addressof(number), 0)
    root = os.open(scene.outside, os.O_RDONLY)
    os.close(call("open_by_handle_at", root, ctypes.addressof(buffer), os.O_RDONLY))


# ---- network --------------------------------------------------------------------------------------------

NETWORK = "network"
_LOCAL = "127.0.0.1"


def connect(port: int, protocol: int = 0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as end:
        end.settimeout(SECONDS)
        end.connect((_LOCAL, port))


def listen(port: int | None) -> None:
    with socket.socket() as end:
        if port is not None:
            end.bind((_LOCAL, port))
        end.listen()


def unix(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(address)


attempt(NETWORK, "dial the parent's port", RELAY)(lambda s: connect(s.parent))
attempt(NETWORK, "listen where the node does already")(lambda s: listen(s.free))
attempt(NETWORK, "dial another port")(lambda s: connect(s.stranger))
attempt(NETWORK, "listen on another port")(lambda s: listen(0))
attempt(NETWORK, "listen without a port, so that the kernel chooses one")(lambda s: listen(None))
attempt(NETWORK, "dial another port over MPTCP")(lambda s: connect(s.stranger, _MPTCP))
attempt(NETWORK, "connect to a unix socket")(lambda s: unix(s.unix))
attempt(NETWORK, "connect to an abstract unix socket")(lambda s: unix(s.abstract))
attempt(NETWORK, "open a netlink socket")(lambda s: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close())
attempt(NETWORK, "open a raw socket", needs_root=True)(
    lambda s: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
)
attempt(NETWORK, "capture packets", needs_root=True)(lambda s: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())


@attempt(NETWORK, "dial another port with TCP fast open")
def _(scene: Scene) -> None:
    with socket.socket() as end:
        end.sendto(b"patient", _MSG_FASTOPEN, (_LOCAL, scene.stranger))


@attempt(NETWORK, "send a datagram")
def _(scene: Scene) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(b"patient", (_LOCAL, scene.datagrams))


# ---- processes ------------------------------------------------------------------------------------------

PROCESSES = "processes"


def fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@attempt(PROCESSES, "start a thread", *ROOMS)
def _(scene: Scene) -> None:
    thread = threading.Thread(target=int)
    try:
        thread.start()
    except RuntimeError as error:
        raise PermissionError from error
    thread.join()


@attempt(PROCESSES, "fork", KEYROOM)
def _(scene: Scene) -> None:
    fork()


@attempt(PROCESSES, "fork fifty processes, as a bomb would", KEYROOM)
def _(scene: Scene) -> None:
    for _ in range(50):
        fork()


@attempt(PROCESSES, "start a program")
def _(scene: Scene) -> None:
    subprocess.run(["/bin/true"], check=True, close_fds=False)


@attempt(PROCESSES, "start a program in its own place")
def _(scene: Scene) -> None:
    os.execv("/bin/true", ["true"])


@attempt(PROCESSES, "start a program from memory")
def _(scene: Scene) -> None:
    program = os.memfd_create("program", 0)
    os.write(program, b"#!/bin/true\n")
    os.execve(program, ["true"], {})


@attempt(PROCESSES, "start a program by posix_spawn")
def _(scene: Scene) -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


@attempt(PROCESSES, "enter a user namespace, and be root there")
def _(scene: Scene) -> None:
    call("unshare", _NEW_USER)


@attempt(PROCESSES, "clone into new namespaces")
def _(scene: Scene) -> None:
    child = call("clone", _NEW_USER | _NEW_NETWORK | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@attempt(PROCESSES, "clone by clone3, whose flags no filter sees")
def _(scene: Scene) -> None:
    arguments = struct.pack("=8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    child = call("clone3", arguments, 64)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@attempt(PROCESSES, "trace another process")
def _(scene: Scene) -> None:
    call("ptrace", _SEIZE, scene.victim, 0, 0)


@attempt(PROCESSES, "read another process's memory")
def _(scene: Scene) -> None:
    memory = os.open(f"/proc/{scene.victim}/mem", os.O_RDONLY)
    if os.pread(memory, len(SECRET), scene.secret_at) != SECRET:
        raise AssertionError("the victim's memory holds something else")


@attempt(PROCESSES, "read another process's memory by process_vm_readv")
def _(scene: Scene) -> None:
    copy = bytearray(len(SECRET))
    here = ctypes.addressof((ctypes.c_char * len(copy)).from_buffer(copy))
    local, remote = (struct.pack("=QQ", address, len(SECRET)) for address in (here, scene.secret_at))
    call("process_vm_readv", scene.victim, local, 1, remote, 1, 0)
    if copy != SECRET:
        raise AssertionError("the victim's memory holds something else")


@attempt(PROCESSES, "read another process's environment")
def _(scene: Scene) -> None:
    Path(f"/proc/{scene.victim}/environ").read_bytes()


@attempt(PROCESSES, "take a descriptor out of another process")
def _(scene: Scene) -> None:
    os.close(call("pidfd_getfd", os.pidfd_open(scene.victim), 0, 0))


@attempt(PROCESSES, "signal another process")
def _(scene: Scene) -> None:
    os.kill(scene.victim, 0)


@attempt(PROCESSES, "signal another process by its descriptor")
def _(scene: Scene) -> None:
    signal.pidfd_send_signal(os.pidfd_open(scene.victim), 0)


@attempt(PROCESSES, "have a descriptor signal another process")
def _(scene: Scene) -> None:
    fcntl.fcntl(0, fcntl.F_SETOWN, scene.victim)


@attempt(PROCESSES, "change another process's limits")
def _(scene: Scene) -> None:
    resource.prlimit(scene.victim, resource.RLIMIT_CORE, (0, 0))


@attempt(PROCESSES, "change another process's priority")
def _(scene: Scene) -> None:
    os.setpriority(os.PRIO_PROCESS, scene.victim, 5)


@attempt(PROCESSES, "type into the terminal that started the node", needs_root=True)
def _(scene: Scene) -> None:
    fcntl.ioctl(scene.terminal, termios.TIOCSTI, b"x")


@attempt(PROCESSES, "leave shared memory of System V for another")
def _(scene: Scene) -> None:
    call("shmctl", call("shmget", 0, 4096, 0o1600), 0, None)


@attempt(PROCESSES, "open a message queue")
def _(scene: Scene) -> None:
    name = f"wardtree-{os.getpid()}\0".encode()
    os.close(call("mq_open", name, os.O_CREAT | os.O_RDWR, 0o600, None))
    call("mq_unlink", name)


# ---- the kernel -----------------------------------------------------------------------------------------

KERNEL = "the kernel"


@attempt(KERNEL, "be dumpable again")
def _(scene: Scene) -> None:
    prctl(4, 1)


@attempt(KERNEL, "set up io_uring")
def _(scene: Scene) -> None:
    parameters = ctypes.create_string_buffer(120)
    os.close(call("io_uring_setup", 1, ctypes.addressof(parameters)))


@attempt(KERNEL, "load a BPF program", needs_root=True)
def _(scene: Scene) -> None:
    os.close(call("bpf", 0, struct.pack("=IIII", 2, 4, 4, 1) + bytes(112), 128))


@attempt(KERNEL, "count the machine's events", needs_root=True)
def _(scene: Scene) -> None:
    attributes = struct.pack("=IIQ", 1, 112, 0) + bytes(96)
    os.close(call("perf_event_open", attributes, -1, 0, -1, 0))


@attempt(KERNEL, "keep a key in the kernel's keyring")
def _(scene: Scene) -> None:
    call("add_key", b"user\0", b"wardtree\0", b"x\0", 1, -2)


@attempt(KERNEL, "handle page faults of its own")
def _(scene: Scene) -> None:
    os.close(call("userfaultfd", 1))


@attempt(KERNEL, "change its personality")
def _(scene: Scene) -> None:
    call("personality", 0x0040000)


@attempt(KERNEL, "set the clock", needs_root=True)
def _(scene: Scene) -> None:
    now = time.clock_gettime(time.CLOCK_REALTIME)
    call("clock_settime", time.CLOCK_REALTIME, struct.pack("=qq", int(now), int(now % 1 * 1e9)))
