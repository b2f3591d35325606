"""Options of the sandbox: the policy, and parts that may be missing, by name."""

from __future__ import annotations

from typing import Annotated

import typer

from node.protocol.posture import ADVISORY, REQUIRED
from node.sandbox.machine import POLICIES


def _known(names: list[str] | None) -> list[str] | None:
    known = sorted(REQUIRED | ADVISORY)
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}; came {name!r}")
    return names


def check_policy(name: str | None) -> str | None:
    """Raises BadParameter for a policy that there is not."""
    if name not in (None, *POLICIES):
        raise typer.BadParameter(f"--sandbox: expected {', '.join(POLICIES)}; came {name!r}")
    return name


AllowGap = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", callback=_known, help="A part of the sandbox that may be missing at a node."),
]
