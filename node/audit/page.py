"""``record.html``: a record as one page that a lawyer can read and print, and that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from html import escape

from keys.manifest import format_time
from node.audit.facts import PURPOSES, Agreement, Facts, Own, Record, Round
from node.html import bullets, page, section, table, text
from node.report import human_bytes

PROVES = (
    "Each ledger is a chain: no line of it was changed, removed or put in between, and every line was signed with the "
    "key that all members agreed is that party's.",
    "Every closed round was signed by the key holder: who was in its sum, how many segments, which model it led to.",
    "Every manifest was signed by all of its members, and the transcript of who agreed on what is a signed chain.",
    "Everything else on this page follows from those, and can be made again from them.",
)
PROVES_NOT = (
    "What a party's ledger says of that party itself (that it wiped, how much memory its processes took, what "
    "confined them) is that party's word, signed. A party that runs other software can write what it likes.",
    "A ledger or a transcript that ends early is still a sound chain. It shows beside another party's: give several, "
    "and compare the digest of the transcript with another member's.",
    "Times are by the clock of whoever wrote the line.",
    "What happened outside of wardtree: what was done with the data before, or with the model after.",
    "Whether the processing was lawful. That is for people to judge; this page is no legal advice.",
)


def render(record: Record) -> str:
    """The page; all of the record's text is escaped."""
    facts = record.facts
    studies = sorted({each.study for each in facts.agreements})
    sections = [
        _head(record, studies),
        _purpose(facts),
        _minimisation(facts),
        _symmetry(facts),
        _privacy(facts),
        _sandbox(facts),
        _proof(record),
    ]
    return page(f"Record of the study {', '.join(studies)}", sections)


def _head(record: Record, studies: Iterable[str]) -> str:
    facts = record.facts
    parties = sorted({member.name for each in facts.agreements for member in each.members})
    times = [each.closed for each in facts.rounds]
    listed = {
        "parties": ", ".join(parties),
        "ledgers in this record": ", ".join(own.party for own in facts.ledgers),
        "rounds closed": len(facts.rounds),
        "from": _time(min(own.began for own in facts.ledgers)),
        "to": _time(max(times)) if times else "–",
        "made": record.made,
    }
    items = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in listed.items())
    verdict, mood = (
        ("The ledgers contradict each other; see the end of this page.", "bad")
        if facts.differences
        else ("The ledgers in this record agree with each other, and with what all members signed.", "ok")
    )
    return (
        f"<header><p>Record of a training in common without sharing data</p><h1>{text(', '.join(studies))}</h1>"
        f'<p class="verdict {mood}">{text(verdict)}</p></header><dl>{items}</dl>'
    )


# ---- purpose --------------------------------------------------------------------------------------------


def _purpose(facts: Facts) -> str:
    parts = [
        "<p>What was to be done with the data, by which rules, is the study below. All members signed it, with the "
        "digest of the code that was to touch the data; a node runs under nothing else.</p>"
    ]
    for each in facts.agreements:
        parts += _agreement(each)
    acts = [[act.time, act.kind, act.by, act.text] for act in facts.acts]
    if acts:
        parts.append(table("Declared since, and signed", ["when", "what", "who", "in words"], acts, text_columns=4))
    return section("1. Purpose limitation: what was agreed, and by whom", parts)


def _agreement(each: Agreement) -> Iterator[str]:
    rows: list[list[object]] = [
        ["study", each.study],
        ["task", f"{each.task}, code with SHA-256 {each.task_digest}"],
        ["reads and does, by its options", each.task_options],
        ["rounds of training planned", each.rounds_planned],
        ["each party hides among at least", f"{each.min_hidden} others"],
        ["differential privacy", each.privacy_mode],
        ["parts of the sandbox that might lack", ", ".join(each.sandbox_gaps) or "none"],
        ["debug modes allowed", ", ".join(each.debug) or "none"],
        ["key holder", f"{each.key_holder}; public key with SHA-256 {each.public_key}"],
        ["proposed", f"{each.proposed} by {each.proposed_by}"],
        ["agreed", f"{each.agreed}, valid until {each.expires}"],
        ["manifest", f"SHA-256 {each.manifest}"],
    ]
    yield table(f"Version {each.version} of the agreement", ["", ""], rows, text_columns=2)
    signed = {signature.name: signature for signature in each.signatures if signature.role == "member"}
    people = [
        [member.name, member.words, member.weight, signed[member.name].entered if member.name in signed else "–"]
        for member in each.members
    ]
    headers = ["member", "words of its keys", "weight", "signature entered"]
    yield table(f"Who signed version {each.version}", headers, people, text_columns=4)
    yield f"<details open><summary>The study, as it was signed</summary><pre>{text(each.study_toml)}</pre></details>"


# ---- minimisation -----------------------------------------------------------------------------------------


def _minimisation(facts: Facts) -> str:
    versions = {each.version for each in facts.rounds}
    rows = [
        [
            f"{each.version}.{each.round}" if len(versions) > 1 else each.round,
            PURPOSES[each.purpose],
            _time(each.closed),
            ", ".join(each.contributors),
            ", ".join(each.left_out) or "nobody",
            f"{each.integers:,}" if each.integers else "–",
        ]
        for each in facts.rounds
    ]
    headers = ["round", "purpose", "closed", "in the sum", "left out", "integers published"]
    parts = [
        "<h3>Read</h3><p>Each party's task read that party's own data, on its own machine, in a process of its own: "
        "with the whole sandbox (section 5) without a network, without a file that it could write, and with none of "
        "the party's files to read but those that the party named in its own settings.</p>",
        "<h3>What left</h3><p>In each round a contributor sent so many integers as are listed, encrypted, to its "
        "parent in the tree. Only their sum over the listed set was decrypted, and that sum was published to all "
        "members. The key holder added its own after that.</p>",
        table("Every round that was closed", headers, rows, text_columns=5),
        _totals(facts.rounds),
        "<h3>Kept</h3><p>At each member: the published model, the published sums that are part of it, the figures of "
        "evaluations in common, the ledger, the transcript, its own sealed keys. No update is kept, nor a digest of "
        "one.</p>",
        "<h3>Wiped</h3><p>What each node held of a round, and when it forgot it: a line is written when the "
        "ciphertexts and sums are dropped and the processes that saw plaintext have ended.</p>",
    ]
    parts += [_wiped(own) for own in facts.ledgers]
    certificates = [act for act in facts.acts if act.kind in ("destruction", "share-destruction")]
    parts.append("<h3>Destroyed</h3>")
    parts.append(
        bullets(act.text for act in certificates)
        if certificates
        else "<p>The transcript has no certificate of destruction of the secret key. While it exists, whoever has it "
        "and recorded ciphertexts of single parties could open those.</p>"
    )
    return section("2. Data and storage minimisation", parts)


def _totals(rounds: Iterable[Round]) -> str:
    count: Counter[str] = Counter()
    integers: Counter[str] = Counter()
    for each in rounds:
        count[each.purpose] += 1
        integers[each.purpose] += each.integers or 0
    rows = [
        [called, count[purpose], f"{integers[purpose]:,}"] for purpose, called in PURPOSES.items() if count[purpose]
    ]
    return table("Published in all, by purpose", ["purpose", "rounds", "integers"], rows) if rows else ""


def _wiped(own: Own) -> str:
    rows = [
        [
            "before the first" if each.round < 0 else each.round,
            _time(each.time),
            human_bytes(each.ciphertext_bytes),
            human_bytes(each.total_bytes),
            "–" if each.enclave_bytes is None else human_bytes(each.enclave_bytes),
            "–" if each.keyroom_bytes is None else human_bytes(each.keyroom_bytes),
        ]
        for each in own.wiped
    ]
    headers = ["round", "wiped", "ciphertexts", "sums", "enclave, ended", "key room, ended"]
    shown = table(f"{own.party}: bytes that were held, and are gone", headers, rows, text_columns=2)
    if own.not_wiped:
        missing = ", ".join(str(number) for _, number in own.not_wiped)
        shown += (
            f"<p>{text(own.party)}: no line says so of round {missing}: the node was ended in it, and its "
            "processes with it.</p>"
        )
    return shown


# ---- the rest -----------------------------------------------------------------------------------------------


def _symmetry(facts: Facts) -> str:
    rows = "".join(f"<div><dt>{text(each.who)}</dt><dd>{bullets(each.sentences)}</dd></div>" for each in facts.learnt)
    return section("3. Information symmetry: who learnt what", [f'<dl class="saw">{rows}</dl>'])


def _privacy(facts: Facts) -> str:
    modes = sorted({each.privacy_mode for each in facts.agreements})
    rows = [
        [own.party, each.round, each.unit, _number(each.epsilon), _number(each.delta)]
        for own in facts.ledgers
        for each in own.privacy or ()
    ]
    if modes == ["none"]:
        meaning = (
            "<p>The study has no differential privacy: the published sums and the model are exact, and what they tell "
            "of a patient is not bounded. They should be treated as what may hold personal data until somebody has "
            "shown otherwise.</p>"
        )
    else:
        meaning = (
            f"<p>Mode: {escape(', '.join(modes))}. Epsilon and delta bound, for the unit that is named, how much all "
            "that was published up to a round can tell of whether it took part; each line is the party's own "
            "account.</p>"
        )
    headers = ["ledger of", "round", "unit", "epsilon", "delta"]
    shown = table("Spent, up to and with each round", headers, rows, text_columns=3) if rows else ""
    return section("4. Privacy of patients in what was published", [meaning, shown])


def _sandbox(facts: Facts) -> str:
    rows = [[own.party, _time(start.time), start.posture] for own in facts.ledgers for start in own.starts]
    meaning = (
        "<p>What the kernel kept each node's processes from, at every start, as the node recorded it. Gaps that are "
        "not allowed by the agreement above make a node refuse to start.</p>"
    )
    shown = table("Every start", ["ledger of", "started", "confined by"], rows, text_columns=3)
    return section("5. Security of processing: the sandbox", [meaning, shown])


def _proof(record: Record) -> str:
    facts = record.facts
    rows = [[own.party, own.lines, own.head, own.key] for own in facts.ledgers]
    parts = [
        "<p>Check it offline, with any member's copy of the transcript: "
        "<code>wardtree ledger verify record.json --transcript transcript.jsonl</code></p>",
        table("Ledgers in this record", ["ledger of", "lines", "hash of the last line", "signed with"], rows,
              text_columns=4),
        f"<p>Transcript: <code>{text(record.transcript)}</code></p>",
    ]  # fmt: skip
    if facts.differences:
        parts.append(f"<h3>Contradictions</h3>{bullets(facts.differences)}")
    parts.append(f"<h3>What it proves</h3>{bullets(PROVES)}<h3>What it cannot prove</h3>{bullets(PROVES_NOT)}")
    return section("6. What this record proves, and what it does not", parts)


def _time(seconds: int) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
