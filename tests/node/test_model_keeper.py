"""The file of a published model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.published import load_model, save_model
from node.update import Model


@pytest.mark.parametrize("length", [1, 1000, (1 << 18) + 3])
@pytest.mark.parametrize("statistics", [None, np.array([1.5, -2.0])])
def test_a_saved_model_is_what_numpy_reads_and_savez_would_write(
    tmp_path: Path, length: int, statistics: np.ndarray | None
) -> None:
    model = Model(7, np.random.default_rng(length).standard_normal(length).astype(np.float32), statistics, 3)
    save_model(tmp_path / "new" / "model.npz", model)
    loaded = load_model(tmp_path / "new" / "model.npz")
    assert (loaded.round, loaded.parties, loaded.parameters.tobytes()) == (7, 3, model.parameters.tobytes())
    assert (loaded.statistics is None) == (statistics is None)
    assert loaded.digest(b"m") == model.digest(b"m")
    empty = np.zeros(0) if statistics is None else statistics
    rest = {"moments": model.moments, "curve": model.curve}
    np.savez(tmp_path / "numpy.npz", parameters=model.parameters, statistics=empty, parties=3, round=7, **rest)
    with np.load(tmp_path / "new" / "model.npz") as ours, np.load(tmp_path / "numpy.npz") as theirs:
        assert sorted(ours) == sorted(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
