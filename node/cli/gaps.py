"""The option that allows parts of the sandbox to be missing, by name."""

from __future__ import annotations

from typing import Annotated

import typer

from node.protocol.posture import ADVISORY, REQUIRED


def _known(names: list[str] | None) -> list[str] | None:
    known = sorted(REQUIRED | ADVISORY)
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}; came {name!r}")
    return names


AllowGap = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", callback=_known, help="A part of the sandbox that may be missing at a node."),
]
