"""``wardtree plan``: what encryption will cost, before anyone has made a key."""

from __future__ import annotations

import json
from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from keys.noise import MAX_RESIDUAL, SIGMAS
from keys.plan import Plan, PlanError
from keys.planner import MAX_PARAMETERS, Explanation, choose, explain
from node.report import human_bytes


def plan(
    max_parties: Annotated[int, typer.Option(help="Parties whose integers a sum must hold; at least 2.")] = 64,
    value_bits: Annotated[int, typer.Option(help="Precision of an encrypted value, 4 to 24 bits.")] = 14,
    params: Annotated[str, typer.Option(help="Parameters of the model: 11000000, or 11e6.")] = "1e6",
    security: Annotated[int, typer.Option(help="128 or 192 bits.")] = 128,
    max_noise: Annotated[
        int, typer.Option(help="Noise added to a total on purpose: ten sigma of it, in integers.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Choose the encryption that keeps sums exact in the fewest bytes, and explain the choice.

    Bytes are those of saved ciphertexts, as measured; signatures and frames add some hundred to each segment.

    A key is redrawn until its worst slot is as good as planned here.

    Exit code 2: no choice is exact; the message says why, and what would fit.

    Examples:

        wardtree plan --max-parties 64 --value-bits 14 --params 11e6

        wardtree plan --max-parties 32 --value-bits 8 --params 11e6 --security 192 --json
    """
    parameters = parse_count(params)
    chosen = choose(max_parties, value_bits, parameters, security, max_noise)
    explained = explain(chosen, parameters)
    if as_json:
        figures = {"parameters": parameters, "plan": chosen.to_dict(), **asdict(explained)}
        typer.echo(json.dumps(figures, indent=2))
    else:
        Console().print(_table(chosen, explained, parameters))


def parse_count(text: str) -> int:
    """A whole number such as ``11000000``, ``11_000_000`` or ``11e6``.

    Raises:
        PlanError: it is none, or not from 1 to 10^9.
    """
    try:
        number = Decimal(text.strip())
        # The range first: a whole 1e999999999 would fill the memory.
        if 1 <= number <= MAX_PARAMETERS and number == int(number):
            return int(number)
    except InvalidOperation:
        pass
    raise PlanError(f"--params: a whole number from 1 to {MAX_PARAMETERS} such as 11e6 was expected, came {text!r}")


def _table(chosen: Plan, explained: Explanation, parameters: int) -> Table:
    title = (
        f"Exact sums of {chosen.max_parties} parties, {chosen.value_bits}-bit values, {parameters:,} parameters, "
        f"{chosen.security}-bit security"
    )
    table = Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
    data, special = chosen.prime_bits
    ten = SIGMAS * explained.worst_sigma
    for name, text in (
        ("ring degree N", f"{chosen.poly_modulus_degree}"),
        ("primes", f"{data} + {special} bits, of {explained.prime_bits_allowed} that the security level allows"),
        ("scale", f"{chosen.scale:,}"),
        ("digits", f"{chosen.digits} of {chosen.digit_bits} bits in each part of a slot"),
        (
            "one ciphertext",
            f"{chosen.values_per_ciphertext:,} values and {chosen.canary_digits} canaries in "
            f"{human_bytes(explained.ciphertext_bytes)}",
        ),
        ("bytes per parameter", f"{explained.bytes_per_parameter:.2f}"),
        (
            "one update",
            f"ciphertexts: {explained.ciphertexts:,}; segments: {explained.segments:,}, "
            f"of up to {human_bytes(chosen.segment_ciphertexts * explained.ciphertext_bytes)}",
        ),
        (
            "a link in a round",
            f"{human_bytes(explained.bytes_up)} up, {human_bytes(explained.bytes_down)} down, "
            f"{human_bytes(explained.bytes_up + explained.bytes_down)} in all",
        ),
        (
            "noise of a full sum",
            f"sigma {explained.rms_sigma:.5f} rms over the slots; {explained.worst_sigma:.4f} in the worst "
            f"({explained.worst_over_rms} x rms)",
        ),
        (
            "error law",
            f"{SIGMAS} sigma of the worst slot = {ten:.3f}, refused above {MAX_RESIDUAL}, wrong above 0.5",
        ),
        ("an honest round fails", f"with a probability below 2^-{int(explained.failure_bits)}"),
        (
            "bits left",
            f"{explained.bits_left:.2f} of the data prime; a digit holds {explained.digit_left:.3f} x the largest "
            "total",
        ),
        *([("noise on purpose", f"up to {chosen.max_noise:,} in a total")] if chosen.max_noise else []),
    ):
        table.add_row(name, text)
    return table
