"""The relay's view of the other rooms: an enclave per job, the key room at the key holder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

from keys.errors import WardtreeError
from node.channel import Channel, ChannelClosedError
from node.course import Terms
from node.protocol.events import OpenTotal
from node.update import Model

_TEMPLATE_ENDED = "the template of the enclaves ended; start this node again, and it goes on"


class RoomError(WardtreeError):
    """A room of this node ended when it should not."""


class RoomEndedError(RoomError):
    """One ended without a word, as when somebody kills it; a new start may go on."""


ANSWER = struct.Struct("<4sQ")
"""What the template says over the control socket: STARTED, with a pidfd, then ENDED and the peak memory in bytes."""
STARTED, ENDED = b"pid\0", b"end\0"


class Enclave:
    """One job's enclave, as the relay sees it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._process: int | None = None
        self._ended = False

    @property
    def descriptor(self) -> int:
        assert self.channel.read is not None
        return self.channel.read

    def started(self, process: int) -> None:
        """The template forked it; ``process`` is a pidfd, which can never mean another process."""
        self._process = process
        if self._ended:
            self._kill()

    def end(self) -> None:
        """End the process, now or as soon as it exists, and forget the pipe."""
        self.channel.close()
        self._ended = True
        if self._process is not None:
            self._kill()

    def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        os.close(self._process)
        self._process = None


class Template:
    """The relay's line to the template. Nothing here waits: the template may still be importing torch."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._starting: deque[Enclave] = deque()

    @property
    def descriptor(self) -> int:
        return self._control.fileno()

    def start(self, kind: str, model: int | None = None, carried: Sequence[bytes] = (), **fields: Any) -> Enclave:
        """Ask for an enclave with this job, which lies in a memfd, so that it blocks nobody.

        Args:
            model: the descriptor of the model that it works on (:mod:`node.shared`).
            carried: the pieces that the task left in an earlier round (:mod:`node.carry`).

        Raises:
            RoomEndedError: the template is gone.
        """
        read, write = os.pipe()
        job = os.memfd_create("wardtree job", os.MFD_CLOEXEC)
        try:
            channel = Channel(None, job)
            channel.send(kind, **fields, carried=len(carried))
            for piece in carried:
                channel.send("carried", piece=piece)
            os.lseek(job, 0, os.SEEK_SET)
            descriptors = [job, write] if model is None else [job, write, model]
            socket.send_fds(self._control, [kind.encode()], descriptors)
        except OSError as error:
            raise RoomEndedError(_TEMPLATE_ENDED) from error
        finally:
            os.close(job)
            os.close(write)
        enclave = Enclave(Channel(read, None))
        self._starting.append(enclave)
        return enclave

    def hear(self) -> int | None:
        """Take the template's word that an enclave runs, or that it has ended.

        Returns:
            When one has ended: the most bytes that it, or a process that sealed for it, had in memory.

        Raises:
            RoomEndedError: the template is gone.
        """
        try:
            answer, descriptors, _, _ = socket.recv_fds(self._control, ANSWER.size, 1)  # one answer at a time
        except ConnectionResetError:  # it ended before it read a job
            answer, descriptors = b"", []
        if not answer:
            raise RoomEndedError(_TEMPLATE_ENDED)
        kind, peak_memory = ANSWER.unpack(answer)
        if kind == ENDED:
            return int(peak_memory)
        self._starting.popleft().started(descriptors[0])
        return None


class Watcher(Protocol):
    """Where descriptors are waited for: the relay's transport."""

    def watch(self, descriptor: int) -> None: ...

    def unwatch(self, descriptor: int) -> None: ...


class OwnEnclave:
    """The enclave of the round in hand, if there is one: of its messages only as many are taken as were asked for,
    and the rest waits in the pipe, which holds it back."""

    def __init__(self, template: Template, watcher: Watcher) -> None:
        self._template, self._watcher = template, watcher
        self._enclave: Enclave | None = None
        self._pulls = 0

    def start(self, kind: str, **fields: Any) -> None:
        """Another one in its place; as :meth:`Template.start`. Its first message may be taken."""
        self.end()
        self._enclave, self._pulls = self._template.start(kind, **fields), 1
        self._watcher.watch(self._enclave.descriptor)

    def end(self) -> None:
        if self._enclave:
            if self._pulls:
                self._watcher.unwatch(self._enclave.descriptor)
            self._enclave.end()
            self._enclave, self._pulls = None, 0

    def is_readable(self, descriptors: Collection[int]) -> bool:
        return self._enclave is not None and self._enclave.descriptor in descriptors

    def pull(self) -> None:
        """One message more may be taken."""
        if self._enclave:
            self._pulls += 1
            self._watcher.watch(self._enclave.descriptor)

    def pause(self) -> None:
        """One that was asked for is there."""
        self._pulls -= 1
        if not self._pulls and self._enclave:
            self._watcher.unwatch(self._enclave.descriptor)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it says, as far as it may be taken; an error as the last word of one that ended without."""
        enclave = self._enclave
        while enclave and self._enclave is enclave and self._pulls:
            try:
                message = enclave.channel.poll()
            except ChannelClosedError:
                message = {"kind": "error", "text": "its enclave ended without a word"}
            if message is None:
                return
            yield message


class OwnKeyRoom:
    """The relay's line to the key room, at the key holder, which has one process a round: from the round's enclave on
    until the relay says that the round is over."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._serves = False

    @property
    def descriptor(self) -> int:
        assert self._channel.read is not None
        return self._channel.read

    def begin(self) -> None:
        """A round's enclave was asked for, and with it the key room's process."""
        self._serves = True

    def open(self, total: OpenTotal, base: bytes, own: str | None) -> None:
        """Have a total opened, ``own`` integers added if that is a name."""
        self._channel.send(
            "open",
            round=total.round,
            segment=total.segment,
            base=base,
            others=sorted(total.others),
            own=own,
            length=total.length,
            whole=total.whole,
            ciphertexts=total.ciphertexts,
        )

    def close(self) -> None:
        """The round is over, if one is open."""
        if self._serves:
            self._channel.send("close")
        self._serves = False

    def hear(self) -> dict[str, Any]:
        """What it says; {} when that is not complete.

        Raises:
            RoomError: it cannot go on.
            RoomEndedError: it is gone.
        """
        try:
            message = self._channel.poll() or {}
        except ChannelClosedError as error:
            raise RoomEndedError("the key room ended; start this node again, and it goes on") from error
        if message.get("kind") == "error":
            raise RoomError(message["text"])
        return message


def round_job(
    model: Model,
    terms: Terms,
    round_: int,
    purpose: str,
    check_seed: bytes | None,
    canary_key: bytes,
    applied: int = 0,
    account: str = "",
) -> dict[str, Any]:
    """The fields of a round's job; ``enclave.model_from`` reads them. The parameters are shared memory."""
    return {
        **terms.job(),
        "applied": applied,
        "account": account,
        "round": round_,
        "purpose": purpose,
        "statistics": None if model.statistics is None else model.statistics.astype("<f8").tobytes(),
        "parties": model.parties,
        "check_seed": check_seed,
        "canary_key": canary_key,
    }
