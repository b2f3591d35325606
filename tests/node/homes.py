"""A small federation's files, made by the real ceremony, for the tests that start from a home folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from keys import ceremony
from keys.canonical import digest
from keys.plan import Plan
from keys.vault import FAST
from node.home import Home, load_home
from node.keyroom import make_key
from node.tasks.loader import task_digest

NOW = datetime.now(UTC).replace(microsecond=0)
EXPIRES = NOW + timedelta(days=1)
NAMES = ("ada", "bo", "cy", "di")
KEY_HOLDER = "ada"
PASSPHRASE = "correct horse"
STUDY = '[study]\nname = "test"\nrounds = 2\nseed = 1\n[task]\nclass = "synthetic"\n'


@dataclass(frozen=True)
class Federation:
    """Everybody's homes and the coordinator's table. ``ada`` holds the secret key."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / "homes" / name

    @property
    def table(self) -> Path:
        return self.folder / "table"

    def home(self, name: str, now: datetime = NOW) -> Home:
        return load_home(self.path(name), now)


def make_federation(
    folder: Path,
    dial_only: tuple[str, ...] = (),
    plan: Plan | None = None,
    names: tuple[str, ...] = NAMES,
    ports: Sequence[int] | None = None,
    **change: Any,
) -> Federation:
    """Four parties or others, from identities to joined homes; ``change`` goes into the manifest."""
    federation, plan = Federation(folder), plan or Plan()
    table = federation.table
    for port, name in zip(ports or range(5000, 5000 + len(names)), names, strict=True):
        ceremony.create_identity(federation.path(name), name, PASSPHRASE, FAST)
        endpoint = None if name in dial_only else f"127.0.0.1:{port}"
        ceremony.make_card(federation.path(name), PASSPHRASE, endpoint, 0, table / f"{name}.card")
    make_key(federation.path(KEY_HOLDER), PASSPHRASE, plan, table / "public.key", FAST)
    manifest: dict[str, Any] = {
        "cards": [ceremony.read_card(table / f"{name}.card") for name in names],
        "public_key_digest": digest((table / "public.key").read_bytes()).hex(),
        "key_holder": KEY_HOLDER,
        "study": STUDY,
        "plan": plan.to_dict(),
        "task_digest": task_digest("synthetic"),
        "weights": dict.fromkeys(names, 1),
        "created": NOW,
        "expires": EXPIRES,
        "out": table / "proposal",
    }
    ceremony.propose(**(manifest | change))
    for name in names:
        ceremony.sign(federation.path(name), PASSPHRASE, table / "proposal", table / f"{name}.signature")
    signatures = [table / f"{name}.signature" for name in names]
    ceremony.combine(ceremony.collect(table / "proposal", signatures), table / "manifest", NOW)
    for name in names:
        ceremony.join(federation.path(name), table / "manifest", table / "public.key", NOW)
    return federation
