"""A federation's model as files of its own, and the proof that these weights are what the federation closed.

    model.safetensors   the weights, by the names that the task gives them
    manifest.json       what all parties signed
    model-card.json     study, rounds, contributors, and the key holder's signed closes; model-card.md: the same to read

Everything in the card follows from the other two files and the closes, so anyone can make it again, offline, and
compare: :func:`verify_export`. The one figure that does not is epsilon, which the exporter states.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from keys import ceremony
from keys.errors import WardtreeError
from keys.identity import verify
from keys.manifest import MAX_MANIFEST, Manifest, verify_signatures
from keys.vault import naming, read_bounded, write_all
from node.continuation import published_model
from node.home import LEDGER, roster_of
from node.keyroom import in_keyroom
from node.ledger import read_entries
from node.protocol.codec import Codec, RemoteProtocolError
from node.protocol.messages import Close
from node.study import Study, parse_study
from node.tasks.loader import load_task_class, task_digest, task_source
from node.update import Model

WEIGHTS, CARD, TEXT = "model.safetensors", "model-card.json", "model-card.md"
MAX_CARD, MAX_WEIGHTS = 64 * 2**20, 8 * 2**30
MOMENTS = "server.moments"
"""What the server's optimiser carries, shape (moments, parameters), where the study has one that does."""
_FORMAT = "wardtree-model-card/1"

Tensors = dict[str, NDArray[np.float32]]
Shapes = Mapping[str, tuple[int, ...]]


class ExportError(WardtreeError):
    """A model cannot be exported, or an exported one is not what it says."""


@dataclass(frozen=True)
class Exported:
    """An exported model that has verified.

    Attributes:
        card: as in ``model-card.json``.
        tensors: the weights, in their order.
        model: the state that the key holder's last close names.
    """

    manifest: Manifest
    card: Mapping[str, Any]
    tensors: Tensors
    model: Model


# ---- export ---------------------------------------------------------------------------------------------


def export_model(home: Path, out: Path) -> tuple[Path, ...]:
    """Write the model that a home has, published last, into the new folder ``out``; gives the files.

    Raises:
        WardtreeError: there is none, it is not what the home's ledger says, or a file exists already.
    """
    manifest = ceremony.read_installed(home)
    model = None if manifest is None else published_model(home, manifest)
    if manifest is None or model is None:
        raise ExportError(f"{home}: no model was published here yet")
    study = parse_study(manifest.study, "the study in the manifest")
    shapes = _shapes(study, manifest, model.parameters.size)
    closes = list(_closes(home, manifest, model))
    if not closes:
        raise ExportError(f"{home / LEDGER}: no signed close under this manifest leads to the model")
    card = make_card(manifest, model, shapes, closes, _epsilon(home, study))
    tensors = _parted(model.parameters, shapes)
    if model.moments.size:
        tensors[MOMENTS] = model.moments  # part of the state that was closed; nobody needs them to use the model
    files = {
        WEIGHTS: save_tensors(tensors, {"state": card["state"]}),  # one entry: several come in any order
        ceremony.MANIFEST: read_bounded(home / ceremony.MANIFEST, MAX_MANIFEST),
        CARD: (json.dumps(card, indent=1) + "\n").encode(),
        TEXT: in_words(card).encode(),
    }
    return write_all(out, files)


def make_card(
    manifest: Manifest, model: Model, shapes: Shapes, closes: Sequence[str], epsilon: float | None
) -> dict[str, Any]:
    """What the card says; ``closes`` are the key holder's signed frames, in hex, from first to last."""
    study = parse_study(manifest.study, "the study in the manifest")
    rounds = [signed_close(manifest, frame) for frame in closes]
    return {
        "format": _FORMAT,
        "study": study.name,
        "task": study.task.class_name,
        "task_digest": manifest.task_digest,
        "parameters": int(model.parameters.size),
        "tensors": [[name, list(shape)] for name, shape in shapes.items()],
        "rounds": model.round,
        "rounds_planned": study.rounds,
        "privacy": {"mode": study.privacy.mode, "epsilon": epsilon},
        "statistics": None if model.statistics is None else model.statistics.tolist(),
        "statistics_parties": model.parties,
        "curve": [[None if math.isnan(each) else each for each in row] for row in model.curve.tolist()],
        "contributors": [[close.round, sorted(close.contributors)] for close in rounds],
        "members": list(manifest.names),
        "key_holder": manifest.key_holder,
        "federation": manifest.federation,
        "version": manifest.version,
        "manifest": manifest.digest,
        "state": model.digest(bytes.fromhex(manifest.digest)).hex(),
        "closes": list(closes),
        "study_toml": manifest.study,
    }


def _shapes(study: Study, manifest: Manifest, parameters: int) -> Shapes:
    """The task's own tensors, or one of all parameters. The task's code is a hospital's: it is asked in a room.

    Raises:
        ExportError: the code is not the signed code, or its tensors are not as large as the model.
    """
    name = study.task.class_name
    if task_digest(name, study.task.options) != manifest.task_digest:
        raise ExportError(f"task {name}: its code here is not the code that all parties signed")
    found = in_keyroom(_layout, name, dict(study.task.options), read=[task_source(name, study.task.options)])
    if found is None:
        return {"parameters": (parameters,)}
    shapes = {str(tensor): tuple(shape) for tensor, shape in found}
    if sum(map(math.prod, shapes.values())) != parameters:
        raise ExportError(f"task {name}: its layout has other tensors than the {parameters} parameters of the model")
    return shapes


def _layout(name: str, options: Mapping[str, Any]) -> list[list[Any]] | None:
    layout = getattr(load_task_class(name), "layout", None)
    shapes = layout(options) if layout else None
    return None if shapes is None else [[tensor, list(shape)] for tensor, shape in shapes.items()]


def _closes(home: Path, manifest: Manifest, model: Model) -> Iterator[str]:
    """The signed closes that lead to the model, from the first that the ledger has."""
    by_state: dict[bytes, tuple[Close, str]] = {}
    for line in read_entries(home / LEDGER):
        entry = line["entry"]
        if entry["what"] == "closed" and "frame" in entry:
            try:
                close = signed_close(manifest, entry["frame"])
            except ExportError:
                continue  # of another manifest
            by_state[close.state] = (close, entry["frame"])
    chain: list[str] = []
    state = model.digest(bytes.fromhex(manifest.digest))
    while state in by_state:
        close, frame = by_state.pop(state)
        chain.append(frame)
        state = close.base
    yield from reversed(chain)


def _epsilon(home: Path, study: Study) -> float | None:
    """What the ledger says was spent; None where the study has no differential privacy."""
    if str(study.privacy.mode) == "none":  # str: of a mode that this version does not know, too
        return None
    spent = [line["entry"].get("epsilon") for line in read_entries(home / LEDGER)]
    return max((float(each) for each in spent if isinstance(each, int | float)), default=None)


def _parted(parameters: NDArray[np.float32], shapes: Shapes) -> Tensors:
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(parameters, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


# ---- verify ---------------------------------------------------------------------------------------------


def verify_export(folder: Path) -> Exported:
    """Check an exported model offline: signatures, closes, weights, and every word of the card but epsilon.

    Raises:
        ExportError or another WardtreeError: names the file, and what does not fit.
    """
    path = folder / ceremony.MANIFEST
    data = read_bounded(path, MAX_MANIFEST)
    with naming(path):
        manifest = verify_signatures(data)
    card = read_card(folder / CARD)
    with naming(folder / CARD):
        shapes = {name: tuple(shape) for name, shape in card["tensors"]}
        _check_chain(manifest, card["closes"])
    tensors, moments = _read_tensors(folder / WEIGHTS, shapes)
    parameters = np.concatenate([tensors[name].reshape(-1) for name in shapes])
    sums = None if card["statistics"] is None else np.array(card["statistics"], np.float64)
    curve = np.array(card["curve"], np.float64) if card["curve"] else np.zeros((0, 0))  # None becomes NaN
    model = Model(card["rounds"], parameters, sums, card["statistics_parties"], moments, curve)
    state = signed_close(manifest, card["closes"][-1]).state
    if model.digest(bytes.fromhex(manifest.digest)) != state:
        raise ExportError(f"{folder}: the weights are not the state that {manifest.key_holder} closed last")
    again = make_card(manifest, model, shapes, card["closes"], card["privacy"]["epsilon"])
    if wrong := [name for name, value in again.items() if card[name] != value]:
        raise ExportError(f"{folder / CARD}: not what follows from manifest, closes and weights: {', '.join(wrong)}")
    return Exported(manifest, card, tensors, model)


def read_card(path: Path) -> dict[str, Any]:
    """A card whose fields have their types; nothing of it is verified.

    Raises:
        ExportError: it is no card.
    """
    try:
        card = json.loads(read_bounded(path, MAX_CARD))
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or card.get("format") != _FORMAT or not _is_card(card):
        raise ExportError(f"{path}: expected a model card ({_FORMAT}), came something else")
    return card


def _is_card(card: Mapping[str, Any]) -> bool:
    texts = ("study", "task", "task_digest", "key_holder", "federation", "manifest", "state", "study_toml")
    numbers = ("parameters", "rounds", "rounds_planned", "statistics_parties", "version")
    lists = ("tensors", "contributors", "members", "closes")
    privacy = card.get("privacy")
    return (
        all(isinstance(card.get(name), str) for name in texts)
        and all(type(card.get(name)) is int and 0 <= card[name] < 2**53 for name in numbers)
        and all(isinstance(card.get(name), list) for name in lists)
        and all(isinstance(frame, str) for frame in card["closes"])
        and bool(card["closes"])
        and all(_is_shape(each) for each in card["tensors"])
        and isinstance(privacy, dict)
        and privacy.keys() == {"mode", "epsilon"}
        and (privacy["epsilon"] is None or type(privacy["epsilon"]) in (int, float))
        and "statistics" in card
        and _is_curve(card.get("curve"))
        and (card["statistics"] is None or _are_numbers(card["statistics"]))
    )


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], list)
        and all(type(length) is int and 1 <= length < 2**40 for length in value[1])
    )


def _is_curve(value: object) -> bool:
    rows = value if isinstance(value, list) else [None]
    widths = {len(row) if isinstance(row, list) else 0 for row in rows}
    numbers = (each for row in rows for each in (row if isinstance(row, list) else ()))
    return len(widths) <= 1 and 0 not in widths and all(each is None or type(each) is float for each in numbers)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is float for each in value)


def _check_chain(manifest: Manifest, frames: Sequence[str]) -> None:
    closes = [signed_close(manifest, frame) for frame in frames]
    for before, after in itertools.pairwise(closes):
        if after.base != before.state or after.round <= before.round:
            raise ExportError(f"the close of round {after.round} does not follow that of round {before.round}")


def signed_close(manifest: Manifest, frame: str) -> Close:
    """A close of this manifest, signed by its key holder. Raises ExportError."""
    codec = Codec(bytes.fromhex(manifest.digest), roster_of(manifest), manifest.signing_keys, verify)
    try:
        decoded = codec.decode("closes", bytes.fromhex(frame), b"")
    except RemoteProtocolError as error:
        raise ExportError(str(error)) from None
    except ValueError:
        raise ExportError("closes: expected signed frames in hexadecimal, came something else") from None
    if not isinstance(decoded.message, Close) or decoded.sender != manifest.key_holder:
        raise ExportError(f"closes: expected closes of {manifest.key_holder}, came something else")
    return decoded.message


def _read_tensors(path: Path, shapes: Shapes) -> tuple[Tensors, NDArray[np.float32]]:
    """The model's tensors, and the moments."""
    data = read_bounded(path, MAX_WEIGHTS)
    try:
        tensors: Tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise ExportError(f"{path}: expected safetensors, came something else") from None
    moments = tensors.pop(MOMENTS, np.zeros((0, 0), np.float32))
    if moments.ndim != 2 or moments.dtype != np.float32:
        raise ExportError(f"{path}: {MOMENTS}: expected two dimensions of float32, came others")
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if found != {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}:
        raise ExportError(f"{path}: expected the tensors that the card names, in float32, came others")
    return {name: tensors[name] for name in shapes}, moments  # the library gives them in any order


# ---- in words -------------------------------------------------------------------------------------------


def in_words(card: Mapping[str, Any]) -> str:
    """The card for people, in Markdown."""
    epsilon = card["privacy"]["epsilon"]
    privacy = (
        "None: what the model itself tells of patients is not limited by differential privacy."
        if card["privacy"]["mode"] == "none"
        else f"{card['privacy']['mode']}; epsilon spent, as the exporter's ledger states it: {epsilon}."
    )
    tensors = ", ".join(f"`{name}` {'x'.join(map(str, shape))}" for name, shape in card["tensors"])
    rounds = "\n".join(f"| {number} | {', '.join(names)} |" for number, names in card["contributors"])
    return f"""\
# Model of the study {json.dumps(card["study"], ensure_ascii=False)}

Trained by {", ".join(card["members"])} together; {card["key_holder"]} held the secret key. The state after
round {card["rounds"]}, evaluations counted; the study trains for {card["rounds_planned"]}. Task
`{card["task"]}`; {card["parameters"]} parameters: {tensors}.

**Differential privacy.** {privacy}

**Check it**, offline: `wardtree model verify FOLDER`. It compares these weights with the key holder's signed closes,
and those with the manifest that all members signed. Whether that manifest is the right one, its digest says, which any
member has: `{card["manifest"]}`.

**Intended use.** What the members agreed on in the study, below. A model is no medical device by being here, and knows
no other patients than its members' were.

| round | in its sum |
| --- | --- |
{rounds}

```toml
{card["study_toml"].rstrip()}
```
"""
