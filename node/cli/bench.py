"""``wardtree bench``: what the encryption costs on this machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from node.bench.common import PLANNED_PARTIES

app = typer.Typer(no_args_is_help=True, help="Measure what wardtree costs on this machine.")


@app.command(epilog="Example: [bold]wardtree bench crypto --params 1000000 --parties 4[/bold]")
def crypto(
    params: Annotated[int, typer.Option(help="Parameters of the update.", min=1)] = 1_000_000,
    parties: Annotated[int, typer.Option(help="Encrypted updates to add and open.", min=1)] = 4,
    value_bits: Annotated[int, typer.Option(help="Bits of one party's signed integer, 4 to 24.")] = 14,
    max_parties: Annotated[
        int, typer.Option(help="Parties that the encryption is planned for.", min=2)
    ] = PLANNED_PARTIES,
    repeats: Annotated[int, typer.Option(help="Timed runs, after one to warm up.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Time one round's encryption, one process: protect, add, open; check that the sum is exact.

    Exit code 1: the sum was not exact.
    """
    from node.bench.ours import measure  # it brings SEAL, which no other command needs

    figures = measure(params, parties, value_bits, repeats=repeats, max_parties=max_parties)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        typer.echo(_text(figures))
    if not figures["exact"]:
        raise typer.Exit(1)


def _text(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['params']:,} parameters, {figures['parties']} parties, {figures['value_bits']}-bit values, "
        f"planned for {figures['max_parties']} parties; medians of {figures['repeats']} runs",
        f"protect, while the model trains  {figures['protect_offline_s']:9.4f} s",
        f"protect, on the round's path     {figures['protect_online_s']:9.4f} s",
        f"add {figures['parties']:>3} updates, bytes to bytes {figures['add_s']:9.4f} s",
        f"add two updates, in memory       {figures['add_two_s']:9.4f} s",
        f"open, bytes to floats            {figures['open_s']:9.4f} s",
        f"upload                           {figures['bytes_per_param']:9.2f} bytes per parameter",
        f"peak memory of one party         {figures['peak_memory_mb']:9.0f} MB",
        f"the sum is                       {'exact' if figures['exact'] else 'NOT EXACT':>9}",
    ]
    if figures["core_share"] < 0.9:
        lines.append(f"(this machine was busy: {figures['core_share']:.0%} of a core was ours)")
    return "\n".join(lines)
