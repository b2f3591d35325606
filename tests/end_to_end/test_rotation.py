"""A version follows another in the middle of a study, and nobody takes part under another manifest than the rest."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from keys import ceremony
from keys.canonical import digest
from keys.ceremony import MANIFEST
from keys.manifest import DOMAIN, Manifest, Signed
from keys.vault import FAST
from node.federation import Succession, install_base, next_base, next_cards, plan_for, propose
from node.home import load_home
from node.keyroom import make_key
from node.published import load_model
from node.study import parse_study
from tests.end_to_end.commands import OWN_GAPS, wait_until
from tests.end_to_end.test_institutions import NAMES, make_homes, nodes

pytestmark = pytest.mark.confined

KEY_HOLDER = "uppsala"
STUDY = """\
[study]
name = "three"
rounds = 6
seed = 1
[task]
class = "synthetic"
[task.options]
params = 3000
[aggregation]
max_openings = 3   # one segment a round: the key is used up after three rounds
[deadlines]
join_seconds = {join}
round_seconds = 20.0
"""


def leaf_of(folder: Path) -> tuple[str, str]:
    """A party below which nobody sits, and its parent."""
    tree = load_home(folder / NAMES[0], datetime.now(UTC)).tree
    leaf = next(name for name in NAMES if not tree.children[name])
    return leaf, tree.parent[leaf]


def rotate(folder: Path, old: Manifest) -> Manifest:
    """Version 2 with a new key, signed by all, in ``folder/2``; everyone's home is as it was."""
    table, now = folder / "2", datetime.now(UTC)
    study = parse_study(old.study, "study")
    make_key(folder / KEY_HOLDER, KEY_HOLDER, plan_for(study), table / "public.key", FAST)
    bases = {next_base(folder / name, old) for name in NAMES}
    assert len(bases) == 1, "everybody's node published the same model last"
    public_key = digest((table / "public.key").read_bytes()).hex()
    propose(
        old.study, study, "study", next_cards(old, (), ()), public_key, KEY_HOLDER, now, now + timedelta(days=1),
        table / "proposal", OWN_GAPS, succession=Succession(old, bases.pop()),
    )  # fmt: skip
    for name in NAMES:
        ceremony.sign(folder / name, name, table / "proposal", table / name)
    signed = ceremony.collect(table / "proposal", [table / name for name in NAMES])
    ceremony.combine(signed, table / "manifest", now, old)
    return signed.manifest


def join(folder: Path, name: str) -> None:
    """What ``wardtree ceremony join`` does."""
    now = datetime.now(UTC)
    install_base(folder / name, ceremony.verify(folder / "2" / "manifest", now), None)
    ceremony.join(folder / name, folder / "2" / "manifest", folder / "2" / "public.key", now)


def models(folder: Path) -> list[np.ndarray]:
    loaded = [load_model(folder / name / "model.npz") for name in NAMES]
    assert len({model.digest(bytes(32)) for model in loaded}) == 1
    return [loaded[0].parameters, np.array(loaded[0].round)]


def test_three_rounds_a_new_key_and_three_rounds_more(tmp_path: Path) -> None:
    make_homes(tmp_path, STUDY.format(join=30.0))
    leaf, parent = leaf_of(tmp_path)
    backup = tmp_path / "backup" / leaf
    shutil.copytree(tmp_path / leaf, backup)
    with nodes({name: tmp_path / name for name in NAMES}) as running:
        assert [process.wait(60) for process in running.values()] == [1, 1, 1], "the key is used up"
    first, round_ = models(tmp_path)
    assert round_ == 3

    old = ceremony.read_installed(tmp_path / leaf)
    assert old is not None
    new = rotate(tmp_path, old)
    assert (new.version, new.public_key_digest == old.public_key_digest) == (2, False)
    for name in NAMES:
        join(tmp_path, name)

    homes = {name: tmp_path / name for name in NAMES if name != leaf}
    with nodes(homes | {"stale": backup}) as running:
        told, error = running["stale"].communicate(timeout=60)
        assert running["stale"].returncode == 2
        assert f"dropped: {parent}: expected version 1 of the manifest ({old.digest[:16]})" in told
        assert "follow a later manifest than version 1, which this node follows: join it" in error
        with nodes({leaf: tmp_path / leaf}) as late:
            finished = {**running, **late}
            del finished["stale"]
            output = {name: process.communicate(timeout=60)[0] for name, process in finished.items()}
        assert [process.returncode for process in finished.values()] == [0, 0, 0], output
    came = f"dropped: {leaf}: expected version 2 of the manifest ({new.digest[:16]}), came version 1"
    assert came in output[parent]
    assert "round 4: model updated" in output[leaf]
    assert "round 3:" not in output[leaf]
    second, round_ = models(tmp_path)
    assert round_ == 6
    assert not np.array_equal(first, second)


def test_a_manifest_that_differs_in_one_byte_takes_no_part_and_both_sides_say_why(tmp_path: Path) -> None:
    make_homes(tmp_path, STUDY.format(join=4.0))
    leaf, parent = leaf_of(tmp_path)
    signed = Signed.from_bytes((tmp_path / leaf / MANIFEST).read_bytes())
    other = dataclasses.replace(signed.manifest, study=signed.manifest.study.replace('"three"', '"threE"'))
    assert sum(a != b for a, b in zip(other.body_bytes, signed.manifest.body_bytes, strict=True)) == 1
    identities = [ceremony.load_identity(tmp_path / name, name) for name in NAMES]
    again = Signed(other, {each.name: each.sign(DOMAIN, other.body_bytes) for each in identities}, {})
    (tmp_path / leaf / MANIFEST).write_bytes(again.to_bytes())
    ours, theirs = signed.manifest.digest[:16], other.digest[:16]
    with nodes({name: tmp_path / name for name in NAMES}) as running:
        output = {name: wait_for_end(running[name]) for name in NAMES if name != leaf}
        running[leaf].kill()
        output[leaf] = running[leaf].communicate()[0]
    assert f"dropped: {leaf}: expected version 1 of the manifest ({ours}), came version 1 ({theirs})" in output[parent]
    assert f"dropped: {parent}: expected version 1 of the manifest ({theirs}), came version 1 ({ours})" in output[leaf]
    assert "round 1" not in output[leaf]
    assert f"missing: {leaf}" in output[KEY_HOLDER]


def wait_for_end(process: subprocess.Popen[str]) -> str:
    """What a node that fails said, on both streams."""
    wait_until(lambda: process.poll() is not None)
    assert process.returncode == 1
    return "".join(process.communicate())
