"""A study that goes on under the next version of its manifest: with the model that was published last."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from keys.manifest import Manifest
from node.home import BASE, LEDGER, MODEL, Home, HomeError
from node.ledger import read_entries
from node.published import load_model
from node.update import Model


def find_base(manifest: Manifest, candidates: Iterable[Path]) -> Path | None:
    """The first of these files with the model that ``manifest`` goes on from, None if none has it."""
    assert manifest.base is not None
    assert manifest.previous is not None
    for path in candidates:
        if path.exists() and load_model(path).digest(bytes.fromhex(manifest.previous)).hex() == manifest.base:
            return path
    return None


def published_model(home: Path, manifest: Manifest) -> Model | None:
    """The model as this home has it published under ``manifest``: its last closed round, or what it began from.

    Raises:
        HomeError: the file in the home is not the model that the ledger says was published last.
    """
    state: str | None = None
    following = ""
    for line in read_entries(home / LEDGER):
        entry = line["entry"]
        if entry["what"] == "started":
            state = state if entry["manifest"] == following else None
            following = entry["manifest"]
        elif entry["what"] == "closed" and following == manifest.digest:
            state = entry["state"]
    if state is not None:
        model = load_model(home / MODEL)
        if model.digest(bytes.fromhex(manifest.digest)).hex() != state:
            raise HomeError(f"{home / MODEL}: not the model that the ledger beside it says was published last")
        return model
    if manifest.base is None:
        return None
    path = find_base(manifest, [home / BASE])
    if path is None:
        raise HomeError(f"{home / BASE}: the model that version {manifest.version} goes on from is not here")
    return load_model(path)


def base_model(home: Home) -> Model | None:
    """The model that the manifest in a home goes on from; None: the first version begins anew.

    Raises:
        HomeError: it is not here, or the study ends before it.
    """
    if home.manifest.base is None:
        return None
    path = find_base(home.manifest, [home.path / BASE])
    if path is None:
        raise HomeError(
            f"{home.path / BASE}: not the published model that version {home.manifest.version} goes on from; "
            "join again, with --model"
        )
    model = load_model(path)
    last = home.study.schedule.last
    if model.round >= last:
        raise HomeError(
            f"{path}: has {model.round} rounds already, and the study of version {home.manifest.version} ends after "
            f"{last}"
        )
    return model
