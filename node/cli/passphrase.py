"""Where a passphrase comes from: a prompt, a file descriptor, or systemd's credentials. Never argv or the
environment, which other processes can read."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from keys.errors import WardtreeError

CREDENTIAL, NEW_CREDENTIAL = "wardtree-passphrase", "wardtree-new-passphrase"
MAX_BYTES = 1024

Descriptor = Annotated[
    int | None,
    typer.Option(
        "--passphrase-fd",
        metavar="N",
        help="Read the passphrase from this file descriptor, up to a line's end, instead of a prompt.",
    ),
]


NewDescriptor = Annotated[
    int | None, typer.Option("--new-passphrase-fd", metavar="N", help="The same for the new passphrase.")
]


class PassphraseError(WardtreeError):
    """No passphrase can be had."""


def read_passphrase(descriptor: int | None, who: str, *, new: bool = False, credential: str = CREDENTIAL) -> str:
    """The passphrase, without the line's end. ``new`` asks for it twice.

    Raises:
        PassphraseError: there is no terminal to ask at, or what came is empty or too long.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if descriptor is not None:
        try:
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                raw = file.readline(MAX_BYTES + 1)
        except OSError as error:
            raise PassphraseError(f"--passphrase-fd {descriptor}: cannot be read: {error.strerror}") from error
    elif credentials and (Path(credentials) / credential).is_file():
        raw = (Path(credentials) / credential).read_bytes()[: MAX_BYTES + 1]
    elif sys.stdin.isatty():
        return str(typer.prompt(f"Passphrase of {who}", hide_input=True, confirmation_prompt=new))
    else:
        raise PassphraseError(
            f"the passphrase of {who} is needed: run at a terminal, give --passphrase-fd, "
            f"or the systemd credential {credential}"
        )
    text = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
    if not text or len(raw) > MAX_BYTES:
        raise PassphraseError(f"the passphrase of {who}: expected 1 to {MAX_BYTES} bytes, came {len(raw)}")
    return text
