"""Features of a hospital's images, computed once, in a room that reads two files, writes none and has no network.

They come back over a pipe; the process that asked for them, which imports nothing to decode images with, writes them.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keys.errors import WardtreeError
from keys.vault import write_private
from node.channel import Channel, ChannelClosedError
from node.images import read_images
from node.process import describe, name_process, reap, spawn
from node.protocol.posture import Posture
from node.sandbox import calls
from node.sandbox.enter import enter, silence
from node.sandbox.machine import detect
from node.sandbox.policy import Room, python_reach
from node.tasks.backbones import Backbone, extract
from node.tasks.base import TaskError

Watch = Callable[[int, int], None]
"""Rows done, rows in all."""


def make_features(
    images: Path,
    classes: Sequence[str],
    backbone: Backbone,
    out: Path,
    medmnist: str | None = None,
    threads: int = 1,
    watch: Watch = lambda done, total: None,
) -> tuple[str, int]:
    """Compute the features of all images and write them with their labels to ``out``, which must not exist (0600: they
    are the hospital's data as the images are, and go when these go).

    Returns:
        The line that names the backbone, and how many rows there are.

    Raises:
        WardtreeError: the images or weights cannot be used, or the file cannot be written.
    """
    if os.path.lexists(out):
        raise WardtreeError(f"{out}: exists already; nothing was touched")
    ours, theirs = Channel.pair()
    child = spawn(signal.SIGKILL, _apart, detect(), ours, theirs, images, classes, backbone, medmnist, threads)
    theirs.close()
    parts: list[bytes] = []
    try:
        head = _answer(ours)
        while (done := sum(map(len, parts)) // (4 * backbone.length)) < head["rows"]:
            watch(done, head["rows"])
            parts.append(_answer(ours)["features"])
        watch(done, done)
    except ChannelClosedError as error:
        raise WardtreeError("features: their room ended without an answer; see its message above") from error
    finally:
        ours.close()
        reap(child)
    arrays: dict[str, Any] = {
        "features": np.frombuffer(b"".join(parts), "<f4").reshape(head["rows"], backbone.length),
        "labels": np.frombuffer(head["labels"], "<i8"),
        "backbone": np.array(head["backbone"]),
    }
    if head["held_out"]:
        arrays["held_out"] = np.frombuffer(head["held_out"], np.bool_)
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_private(out, file.getvalue())
    return str(head["backbone"]), int(head["rows"])


def room(images: Path, weights: Path) -> Room:
    """Python, the images and the weights; no network, no writable file, no other process."""
    reach = python_reach()
    return Room("features", replace(reach, read=(*reach.read, images.resolve(), weights.resolve())), calls.alone)


def _answer(channel: Channel) -> dict[str, Any]:
    answer = channel.receive()
    if answer["kind"] == "refused":
        raise TaskError(str(answer["text"]))
    return answer


def _apart(
    posture: Posture,
    ours: Channel,
    theirs: Channel,
    images: Path,
    classes: Sequence[str],
    backbone: Backbone,
    medmnist: str | None,
    threads: int,
) -> None:
    ours.close()
    enter(room(images, backbone.weights), posture, theirs.descriptors)
    name_process("features")
    silence()
    try:
        line = backbone.described()
        rows = read_images(str(images), images, classes, medmnist)
        held_out = b"" if rows.held_out is None else rows.held_out.tobytes()
        labels = rows.y.astype("<i8").tobytes()
        theirs.send("rows", rows=len(rows), labels=labels, held_out=held_out, backbone=line)
        for part in extract(backbone, rows.x, threads):
            theirs.send("features", features=part.astype("<f4").tobytes())
    except WardtreeError as error:
        theirs.send("refused", text=str(error))
    except ChannelClosedError:
        return
    except Exception as error:  # its message may hold what a picture holds
        theirs.send("refused", text=f"features: {describe(error)}")
