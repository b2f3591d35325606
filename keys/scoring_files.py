"""The files of an encrypted scoring, as they pass between the parties: batches, encrypted models, scores.

    wardtree-scoring/1
    {"body": ..., "by": ..., "facts": {...}, "kind": ..., "signature": ...}
    ciphertexts

The second line is canonical JSON; ``body`` is the SHA-256 of what follows it, and the signature (Ed25519, domain
"scoring") is over the line without it. Whose signature counts follows from a manifest that both sides have; without
one they say so, and nothing vouches for the file but the way that it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keys.canonical import canonical, digest, fields, parse, unhex
from keys.identity import SIGNATURE_BYTES, Identity, check_name, verify
from keys.scoring_layout import Layout, ScoringError
from keys.vault import naming, read_bounded

BATCH, MODEL, SCORES = "batch", "model", "scores"
MAX_HEADER = 4096
MAX_FILE = {BATCH: 64 * 2**20, MODEL: 2**30, SCORES: 256 * 2**20}
"""Bytes of a file of each kind, looked at before anything is read."""

_MAGIC = b"wardtree-scoring/1\n"
_DOMAIN = "scoring"
_HEADER = {"body": (str,), "by": (str, type(None)), "facts": (dict,), "kind": (str,), "signature": (str, type(None))}
_SHAPE = {"features": (int,), "outputs": (int,), "patients": (int,)}
_FACTS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    BATCH: _SHAPE | {"model": (str,), "feature_step": (str,)},
    MODEL: _SHAPE | {"model": (str,), "feature_step": (str,), "weight_step": (str,)},
    SCORES: _SHAPE | {"model": (str,), "of": (str,), "feature_step": (str,), "weight_step": (str,)},
}


@dataclass(frozen=True)
class ScoringFile:
    """One of the files.

    Attributes:
        kind: BATCH (patients, encrypted), MODEL (weights, encrypted) or SCORES.
        by: whose signature it has; None: nobody's.
        facts: ``patients`` (of a model: how many there can be), ``features`` and ``outputs``; ``model``, the state's
            digest; ``feature_step`` and ``weight_step``, what a whole number stands for; of scores ``of``, the digest
            of the file that they answer.
        body: ciphertexts.
    """

    kind: str
    by: str | None
    facts: Mapping[str, Any]
    body: bytes

    @property
    def layout(self) -> Layout:
        return Layout(self.facts["patients"], self.facts["features"], self.facts["outputs"])

    def step(self, name: str) -> float:
        """A step as a number: the same float that was written."""
        return step_from(self.facts[name])

    @property
    def digest(self) -> str:
        """Names the file: by what it says of itself, its ciphertexts among it."""
        return digest(canonical(self._signed_part())).hex()

    def to_bytes(self, identity: Identity | None) -> bytes:
        """The file; with an identity, which must be ``by``, signed."""
        signature = identity.sign(_DOMAIN, canonical(self._signed_part())).hex() if identity else None
        return _MAGIC + canonical(self._signed_part() | {"signature": signature}) + b"\n" + self.body

    def _signed_part(self) -> dict[str, Any]:
        return {"body": digest(self.body).hex(), "by": self.by, "facts": dict(self.facts), "kind": self.kind}

    @classmethod
    def from_bytes(cls, data: bytes, kind: str, keys: Mapping[str, bytes] | None) -> ScoringFile:
        """Read a file of this kind.

        Args:
            keys: the Ed25519 keys of those who may have signed it, by name; None: whoever it is from.

        Raises:
            ScoringError, FormatError: names what is wrong.
        """
        if not data.startswith(_MAGIC):
            raise ScoringError("expected a file of an encrypted scoring, came something else")
        line, _, body = data[len(_MAGIC) :].partition(b"\n")
        values = fields(parse(line, MAX_HEADER), "scoring header", _HEADER)
        if values["kind"] != kind:
            raise ScoringError(f"expected {kind}, came {values['kind']!r}")
        facts = fields(values["facts"], f"{kind}: facts", _FACTS[kind])
        for name in ("model", "of"):
            if name in facts:
                unhex(facts[name], 32, f"{kind}: {name}")
        for name in ("feature_step", "weight_step"):
            if name in facts:
                step_from(facts[name])
        by = None if values["by"] is None else check_name(values["by"])
        file = cls(kind, by, facts, body)
        if unhex(values["body"], 32, f"{kind}: body") != digest(body):
            raise ScoringError(f"{kind}: its ciphertexts are not those that its header names: cut short, or changed")
        if keys is not None:
            file._check_signature(values["signature"], keys)
        layout = file.layout  # raises where it does not fit
        if kind == MODEL and layout != Layout.of_model(layout.features, layout.outputs):
            raise ScoringError("model: its layout would tell its owner parts of a patient's score, and so features")
        return file

    def _check_signature(self, signature: object, keys: Mapping[str, bytes]) -> None:
        if self.by is None or signature is None:
            raise ScoringError(f"{self.kind}: expected the signature of a member, came none; or take it --unsigned")
        if self.by not in keys:
            raise ScoringError(f"{self.kind}: signed by {self.by}, who is no member of this manifest")
        value = unhex(signature, SIGNATURE_BYTES, f"{self.kind}: signature")
        if not verify(keys[self.by], _DOMAIN, canonical(self._signed_part()), value):
            raise ScoringError(f"{self.kind}: the signature of {self.by} is false")


def read_scoring_file(path: Path, kind: str, keys: Mapping[str, bytes] | None) -> ScoringFile:
    """As :meth:`ScoringFile.from_bytes`; the errors name the file."""
    data = read_bounded(path, MAX_FILE[kind])
    with naming(path):
        return ScoringFile.from_bytes(data, kind, keys)


def step_from(text: object) -> float:
    """A positive, finite float in the spelling of ``float.hex``. Raises ScoringError."""
    try:
        value = float.fromhex(text) if isinstance(text, str) else 0.0
    except (ValueError, OverflowError):
        value = 0.0
    if not 1e-30 < value < 1e30 or value.hex() != text:
        raise ScoringError("step: expected a positive number in hexadecimal, came something else")
    return value
