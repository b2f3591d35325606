"""A status with something of everything, as a relay writes it."""

from __future__ import annotations

import time
from typing import Any


def status(**change: Any) -> dict[str, Any]:
    """Of ``ada``, the key holder of four, of whom one is gone and one was never heard of."""
    now = time.time()
    parties = [("ada", None, "here"), ("bo", "ada", "here"), ("cy", "bo", "gone"), ("di", "bo", "awaited")]
    return {
        "format": "wardtree-status/1",
        "party": "ada",
        "role": "key holder",
        "study": "test",
        "rounds": 5,
        "federation": "ab" * 16,
        "manifest_version": 2,
        "manifest_digest": "cd" * 32,
        "posture": "required landlock=7",
        "state": "flowing",
        "started_at": now - 100,
        "written_at": now,
        "heard_at": now - 1,
        "parent": None,
        "children": ["bo"],
        "round": {
            "round": 3, "purpose": "train", "opened_at": now - 2, "members": ["ada", "bo"], "segments": 4, "sealed": 3,
            "merged": 2, "sent": 2, "opened": 1, "applied": 0,
        },
        "closed": [
            {"round": 1, "contributors": 3, "left_out": False, "closed_at": now - 9, "seconds": None},
            {"round": 2, "contributors": 2, "left_out": True, "closed_at": now - 4, "seconds": 1.5},
        ],
        "contributors": ["bo", "cy"],
        "model": "ef" * 32,
        "left_out": [2],
        "left_out_count": 1,
        "stages": {"open": {"count": 4, "seconds": 2.0, "last": 0.4}},
        "parties": [
            {
                "name": name, "place": place, "parent": place if standing == "here" else None, "standing": standing,
                "since": now - 50, "contributed": name in ("bo", "cy"),
            }
            for name, place, standing in parties
        ],
        "epsilon": None,
        "budget": None,
        "evaluations": [],
        "refused": 7,
        "warnings": ["round 2: no update of our own: it was late"],
        "error": None,
        "ledger": [
            {"what": "started", "round": None, "contributors": None, "time": int(now)},
            {"what": "closed", "round": 2, "contributors": 2, "time": None},
        ],
        **change,
    }  # fmt: skip
