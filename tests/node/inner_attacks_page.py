"""The table of ``inner_attacks.py``: ``scripts/attack inner`` prints it, ``--out docs/results`` writes it."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.node.inner_attacks import (
    ATTACKS,
    LENGTH,
    NAMES,
    PLAN,
    Rejoiner,
    Result,
    hand_false_model,
    make_scene,
    run_attack,
)  # fmt: skip

PAGE = """\
# A malicious inner node

What the apex of a tree can do to a leaf below it. *Undefended* is the same encryption without our checks: it decrypts
what comes, rounds and publishes; the figure is the correlation of what the attacker reads in that with the victim's
update, in a round without the key holder's own update and in one with it. *wardtree* is the answer of a real key room:
what it refuses is not published, and the key is retired. Made by `scripts/attack inner --out docs/results`; all
{count} totals are real CKKS. Updates are uniform integers of {bits} bits, {length:,} of them; {parties} parties.

{table}

**False totals published by wardtree: {published} of {tried}.** A rejoiner that was handed another model than the key
holder signed: {rejoiner}.

Attacks marked * are meant to leave the victim's update alone.
"""


def write_table(results: list[Result], rejoiner: Rejoiner) -> tuple[str, dict[str, Any]]:
    """The page in Markdown, and its figures."""
    took = rejoiner.keeper.digest != rejoiner.first
    outcome = "took it" if took else f"{rejoiner.reports[-1]!r}, left its parent, trained on nothing"
    lines = ["| attack | undefended | with the key holder's own | wardtree |", "|---|---|---|---|"]
    for result in results:
        figures = " | ".join(f"{correlation:.3f}" for correlation in result.correlations)
        mark = "*" if result.isolates else ""
        lines.append(f"| {result.attack}{mark} | {figures} | {'; '.join(dict.fromkeys(result.answers))} |")
    answers = [answer for result in results for answer in result.answers]
    published = sum(result.published for result in results)
    page = PAGE.format(
        count=len(answers), bits=PLAN.value_bits, length=LENGTH, parties=len(NAMES), table="\n".join(lines),
        published=published, tried=len(answers), rejoiner=outcome,
    )  # fmt: skip
    return page, {"published": published, "rejoiner": outcome, "attacks": [asdict(result) for result in results]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/attack inner", description="What a malicious inner node can do.")
    parser.add_argument("--out", type=Path, help="a folder for the table and its figures")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder))
        results = [run_attack(attack, replace(scene, integers={})) for attack in ATTACKS]
        page, figures = write_table(results, hand_false_model(scene, Path(folder) / "rejoiner"))
    print(page)
    if out:
        (out / "inner-attacks.md").write_text(page, encoding="utf-8")
        (out / "inner-attacks.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if figures["published"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
