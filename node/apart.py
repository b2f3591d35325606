"""One call in a process of its own, which then ends, and with it all that it knew."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from keys.errors import WardtreeError
from node.channel import Channel, ChannelClosedError
from node.process import end_all, reap, spawn
from node.sandbox.kernel import SandboxError
from topology import TopologyError


class NoAnswerError(WardtreeError):
    """The process ended without an answer; see its message above."""

    def __init__(self, code: int) -> None:
        """``code`` as :func:`node.process.reap` gives it: EXIT_UNAVAILABLE where it could not be confined."""
        super().__init__(f"a process ended with {code}, without an answer; see its message above")
        self.code = code


def call_apart(function: Callable[[Channel], Any]) -> Any:
    """Call ``function`` in a fork; gives its (plain) result. It gets the channel over which that goes, whose
    descriptors must outlive whatever walls it puts around itself.

    Raises:
        NoAnswerError: it ended before.
        WardtreeError: as the function did.
    """
    ours, theirs = Channel.pair()

    def answer() -> None:
        ours.close()
        try:
            theirs.send("done", value=function(theirs))
        except SandboxError:
            raise  # its exit code says so
        except (WardtreeError, TopologyError) as error:
            theirs.send("refused", text=str(error))

    child = spawn(signal.SIGKILL, answer)
    theirs.close()
    try:
        said = ours.receive()
    except ChannelClosedError as error:
        raise NoAnswerError(reap(child)) from error
    except BaseException:
        end_all({"apart": child})
        raise
    finally:
        ours.close()
    reap(child)
    if said["kind"] == "refused":
        raise WardtreeError(said["text"])
    return said["value"]
