"""What a record says: the parts of ``record.json``. Everything here follows from the transcript and the ledgers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from node.protocol.messages import EVALUATE, STATISTICS, TRAIN

FORMAT = "wardtree-record/1"

PURPOSES = {STATISTICS: "statistics", TRAIN: "training", EVALUATE: "evaluation", "energies": "block norms"}
"""What a round of each purpose is called."""


Seconds = Annotated[int, Field(ge=0, le=253_402_300_799)]
"""Since 1970, to the end of the year 9999."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Member(Part):
    """A party of a manifest."""

    name: str
    words: str = Field(description="The fingerprint of its keys, as it is read out over the telephone.")
    weight: int = Field(description="Public; follows from the number of examples that it declared, or 1.")
    listens: bool = Field(description="Whether others reach it; the rest only dials out.")


class Signature(Part):
    """Somebody's over a manifest."""

    name: str
    role: str = Field(description="member, or approval: of the version before, to let that one end.")
    entered: str = Field(description="When the transcript got it.")


class Agreement(Part):
    """A version of the manifest under which a node of these ledgers ran, and which all of its members signed."""

    version: int
    manifest: str = Field(description="SHA-256 of what was signed.")
    federation: str
    study: str = Field(description="The study's name.")
    study_toml: str = Field(description="The whole study, as it was signed.")
    task: str
    task_options: str = Field(description="What the study asks the task to read and do, in JSON.")
    task_digest: str = Field(description="SHA-256 of the code that touched the data.")
    rounds_planned: int
    privacy_mode: str
    key_holder: str
    members: tuple[Member, ...]
    min_hidden: int
    sandbox_gaps: tuple[str, ...] = Field(description="Parts of the sandbox that a node might lack.")
    debug: tuple[str, ...] = Field(description="Debug modes that were allowed.")
    public_key: str = Field(description="SHA-256 of the public key.")
    proposed_by: str
    proposed: str
    signatures: tuple[Signature, ...]
    agreed: str
    expires: str


class Act(Part):
    """A signed statement in the transcript: a revocation, custody of the secret key, its destruction."""

    kind: str
    by: str
    time: str
    text: str


class Round(Part):
    """A round that the key holder closed, by its signature."""

    version: int = Field(description="Of the manifest.")
    round: int
    purpose: str = Field(description=f"One of {', '.join(PURPOSES)}.")
    contributors: tuple[str, ...]
    left_out: tuple[str, ...]
    segments: int
    integers: int | None = Field(description="How many were published, of the wiping lines; null where none says so.")
    state: str = Field(description="SHA-256 of the published model after it.")
    closed: Seconds = Field(description="When, in seconds since 1970, by the clock of the first of known_to.")
    known_to: tuple[str, ...] = Field(description="Whose ledger has it, of those in this record.")


class Start(Part):
    """A start of a node, and what confined it: its own word."""

    version: int
    time: Seconds
    posture: str


class Wiped(Part):
    """What a node held of a round and forgot: its own word. Round -1 is the reading of the data before the first."""

    version: int
    round: int
    time: Seconds
    ciphertext_bytes: int
    total_bytes: int
    enclave_bytes: int | None = Field(description="The most that the enclave, which has ended, had in memory.")
    keyroom_bytes: int | None = Field(description="The same of the key room's process; at the key holder.")


class Spent(Part):
    """What a node's ledger says was spent of the privacy budget, up to and with a round."""

    unit: str = Field(description="Whose presence the bound is about: a record, or a hospital.")
    version: int
    round: int
    epsilon: float | None = Field(description="null where no bound holds.")
    delta: float | None


class Own(Part):
    """What one party's ledger says of itself. It is that party's word, signed."""

    party: str
    key: str = Field(description="The Ed25519 public key that signed every line.")
    lines: int
    head: str = Field(description="The hash of the last line, which stands for all of them.")
    began: Seconds = Field(description="The first start, in seconds since 1970.")
    starts: tuple[Start, ...]
    took_part: dict[str, int] = Field(description="Rounds that it began to work in.")
    closed: int = Field(description="Closed rounds that it knows of.")
    wiped: tuple[Wiped, ...]
    not_wiped: tuple[tuple[int, int], ...] = Field(
        description="(version, round) where it worked and no line says that it wiped: its node was ended in it."
    )
    skipped: int = Field(description="At the key holder: rounds that it did not open, by the rules on sets.")
    openings: int = Field(description="At the key holder: rounds of which it opened a total.")
    privacy: tuple[Spent, ...] | None = Field(description="null where the study has no differential privacy.")


class Learnt(Part):
    """What somebody learnt, in sentences."""

    who: str
    sentences: tuple[str, ...]


class Facts(Part):
    """All that follows from the ledgers and the transcript."""

    agreements: tuple[Agreement, ...]
    acts: tuple[Act, ...]
    rounds: tuple[Round, ...]
    ledgers: tuple[Own, ...]
    learnt: tuple[Learnt, ...]
    differences: tuple[str, ...] = Field(description="Where the ledgers contradict each other; empty is good.")


class Record(Part):
    """``record.json``."""

    format: Literal["wardtree-record/1"]
    made: str = Field(description="When, by the clock of whoever made it.")
    transcript: str = Field(description="The hash of the last entry of the transcript that it was made with.")
    ledgers: dict[str, list[dict[str, Any]]] = Field(description="Every line of every party's ledger.")
    facts: Facts
