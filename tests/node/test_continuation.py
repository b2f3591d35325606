"""The published model: how it is kept, and how the next version of the manifest finds it again."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from keys.manifest import Manifest
from node.continuation import find_base, published_model
from node.federation import FederationError, install_base
from node.home import BASE, LEDGER, MODEL, HomeError
from node.ledger import Ledger
from node.published import PublishedError, load_model, save_model
from node.update import Model
from tests.keys.test_succession import OLD, manifest

FIRST = manifest(OLD.values())
FIRST_DIGEST = bytes.fromhex(FIRST.digest)
MODELS = [Model(round_, np.full(5, round_, np.float32), np.ones(2), 3) for round_ in (3, 4)]


def second(model: Model) -> Manifest:
    return manifest(OLD.values(), version=2, previous=FIRST.digest, base=model.digest(FIRST_DIGEST).hex())


def ran(home: Path, under: Manifest, *models: Model) -> None:
    """The ledger and the model of a node that closed these rounds."""
    ledger = Ledger(home / LEDGER)
    ledger.append(what="started", manifest=under.digest)
    for model in models:
        ledger.append(what="opening", round=model.round, segment=0)
        ledger.append(what="closed", round=model.round, state=model.digest(bytes.fromhex(under.digest)).hex())
        save_model(home / MODEL, model)
    ledger.append(what="opening", round=9, segment=0)  # a round that never closed
    ledger.close()


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save_model(tmp_path / MODEL, MODELS[0])
    assert load_model(tmp_path / MODEL).digest(FIRST_DIGEST) == MODELS[0].digest(FIRST_DIGEST)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL], "no temporary file stays"
    save_model(tmp_path / MODEL, MODELS[1])
    assert load_model(tmp_path / MODEL).round == 4


def test_the_model_that_was_published_last_is_the_one_of_the_last_close(tmp_path: Path) -> None:
    assert published_model(tmp_path, FIRST) is None
    ran(tmp_path, FIRST, *MODELS)
    found = published_model(tmp_path, FIRST)
    assert found is not None
    assert found.digest(FIRST_DIGEST) == MODELS[1].digest(FIRST_DIGEST)
    save_model(tmp_path / MODEL, MODELS[0])
    with pytest.raises(HomeError, match="not the model that the ledger beside it says was published last"):
        published_model(tmp_path, FIRST)


def test_a_version_that_closed_nothing_has_what_it_began_from(tmp_path: Path) -> None:
    ran(tmp_path, FIRST, MODELS[1])
    next_ = second(MODELS[1])
    with pytest.raises(HomeError, match="the model that version 2 goes on from is not here"):
        published_model(tmp_path, next_)
    assert install_base(tmp_path, next_, None) == tmp_path / BASE
    found = published_model(tmp_path, next_)
    assert found is not None
    assert found.round == 4
    ran(tmp_path, next_, Model(5, MODELS[1].parameters, MODELS[1].statistics, 3))
    found = published_model(tmp_path, next_)
    assert found is not None
    assert found.round == 5


def test_a_model_from_another_party_is_taken_if_its_digest_is_the_signed_one(tmp_path: Path) -> None:
    home, sent = tmp_path / "home", tmp_path / "sent.npz"
    home.mkdir()
    save_model(sent, MODELS[0])
    with pytest.raises(FederationError, match=r"which is not in .*sent\.npz: get the file model\.npz of another party"):
        install_base(home, second(MODELS[1]), sent)
    with pytest.raises(FederationError, match="which is not in this home"):
        install_base(home, second(MODELS[1]), None)
    assert not (home / BASE).exists()
    save_model(sent, MODELS[1])
    assert install_base(home, second(MODELS[1]), sent) == home / BASE
    assert find_base(second(MODELS[1]), [sent, home / BASE]) == sent
    assert install_base(home, manifest(OLD.values()), sent) is None, "this version begins anew"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", "a zip of something else"])
def test_a_file_that_is_no_model_is_one_line(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / MODEL
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", content)
    with pytest.raises(PublishedError, match=rf"{MODEL}: (expected a published model|cannot be read)") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(PublishedError, match="cannot be read"):
        load_model(tmp_path / "missing.npz")
