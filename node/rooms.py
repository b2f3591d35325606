"""The relay's view of the other rooms: an enclave per job, the key room at the key holder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

from keys.errors import WardtreeError
from node.channel import Channel, ChannelClosedError
from node.update import Model


class RoomError(WardtreeError):
    """A room of this node ended when it should not."""


class Enclave:
    """One job's enclave, as the relay sees it."""

    def __init__(self, template: socket.socket, kind: str, **fields: Any) -> None:
        """Have the template fork an enclave and give it its job.

        Raises:
            RoomError: the template is gone.
        """
        self.channel, theirs = Channel.pair()
        try:
            socket.send_fds(template, [kind.encode()], [theirs.read or 0, theirs.write or 0])
            theirs.close()
            answer, descriptors, _, _ = socket.recv_fds(template, 16, 1)
            if not answer:
                raise RoomError("the template of the enclaves ended; see its message above")
            self._process = descriptors[0]
            self.channel.send(kind, **fields)
        except (OSError, ChannelClosedError) as error:
            raise RoomError("the template of the enclaves ended; see its message above") from error

    @property
    def descriptor(self) -> int:
        assert self.channel.read is not None
        return self.channel.read

    def end(self) -> None:
        """End the process if it still runs, and forget the pipes."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        os.close(self._process)
        self.channel.close()


def round_job(model: Model, round_: int, purpose: str, check_seed: bytes | None) -> dict[str, Any]:
    """The fields of a round's job; ``enclave.model_from`` reads them."""
    return {
        "round": round_,
        "purpose": purpose,
        "model": model.parameters.astype("<f4").tobytes(),
        "statistics": None if model.statistics is None else model.statistics.astype("<f8").tobytes(),
        "parties": model.parties,
        "check_seed": check_seed,
    }
