"""``python -m node.reproduce``: the published experiments, a command each. ``scripts/reproduce`` calls it."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from keys.errors import WardtreeError
from node.privacy.accountant import MECHANISMS
from node.reproduce import adpfl as ad
from node.reproduce import attacks as attempts
from node.reproduce import attacks_page as attempts_page
from node.reproduce import dpresnet as dpr
from node.reproduce import dpresnet_checks as dpr_checks
from node.reproduce import dpresnet_page as dpr_page
from node.reproduce import medhe as med
from node.reproduce import medhe_page, medhe_wire
from node.reproduce import overhead as over
from node.reproduce import scoring as scores
from node.reproduce import table3 as three
from node.reproduce import table3_page as three_page
from node.reproduce import table5 as five
from node.reproduce import table7 as seven
from node.reproduce import table7_page as seven_page
from node.reproduce import timings as times
from node.reproduce.approximate import SCHEMES
from node.reproduce.framingham import FILES
from node.reproduce.gradient_inversion import ATTACKS
from node.reproduce.output import Results
from node.reproduce.pictures import BLOOD, DERMA, DIGITS, Pictures, read_pictures
from node.tasks.backbones import Backbone, packaged_weights

T = TypeVar("T", bound=str)
RESULTS, QUICK = Path("docs/results"), Path("runs/reproduce-quick")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make the published tables again, on real processes and sockets. Each command writes NAME.md, .json, .csv and "
    ".svg; what was measured before stays in NAME.json, so an experiment can be run in parts.",
    epilog="Examples: reproduce all --quick; reproduce table5 --parties 4 --parties 8; reproduce timings --redraw",
)


@app.callback()
def _root() -> None:
    # Many processes share few cores here: threads inside each of them only get in each other's way.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


Quick = Annotated[bool, typer.Option("--quick", help=f"Smaller sizes, in minutes; written to {QUICK}.")]
Out = Annotated[Path | None, typer.Option(help=f"The folder for the results; default: {RESULTS}.")]
Redraw = Annotated[bool, typer.Option("--redraw", help="Only make page and picture again, from the JSON file.")]
Missing = Annotated[bool, typer.Option("--missing", help="Only what the JSON file does not have yet.")]

Blood = Annotated[Path | None, typer.Option("--bloodmnist", help="MedMNIST's bloodmnist.npz.")]
Derma = Annotated[Path | None, typer.Option("--dermamnist", help="MedMNIST's dermamnist.npz.")]
Weights = Annotated[Path | None, typer.Option(help="torchvision's resnet18-f37072fd.pth; default: EfficientNet-Lite0.")]


def _results(name: str, keys: tuple[str, ...], quick: bool, out: Path | None, missing: bool = False) -> Results:
    return Results(out or (QUICK if quick else RESULTS), name, keys, quick, missing)


@app.command()
def table5(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    missing: Missing = False,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Of each cell; default 100, quick 5.")] = None,
    parties: Annotated[list[int] | None, typer.Option(min=2, max=16, help="Only these; may be repeated.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(SCHEMES)}.")] = None,
    file: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(FILES)}.")] = None,
) -> None:
    """Accuracy by encryption and number of parties: heart disease, logistic regression."""
    results = _results("table5", ("file", "parties", "scheme"), quick, out, missing)
    if not redraw:
        five.run(
            results,
            repetitions or (5 if quick else 100),
            tuple(parties or (five.QUICK_PARTIES if quick else five.PARTIES)),
            _known("--scheme", scheme, SCHEMES),
            _known("--file", file or (list(FILES)[:1] if quick else None), tuple(FILES)),
        )
    five.publish(results)


@app.command()
def table3(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    missing: Missing = False,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Default: 100, of images 5, in the tree 2.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(three.CASES)}.")] = None,
    accountant: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(MECHANISMS)}.")] = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="Only these, inf among them; may be repeated.")] = None,
    bloodmnist: Blood = None,
    dermamnist: Derma = None,
    weights: Weights = None,
) -> None:
    """Accuracy against the privacy budget, DP-SGD: heart disease, and the top layer of an image model."""
    results = _results("table3", ("recipe", "accountant", "epsilon"), quick, out, missing)
    if not redraw:
        three.run(
            results,
            repetitions,
            tuple(epsilon or (three.QUICK_EPSILONS if quick else three.EPSILONS)),
            _known("--recipe", recipe, tuple(three.CASES)),
            _known("--accountant", accountant, MECHANISMS),
            _asked(None, bloodmnist, dermamnist, weights),
        )
    three_page.publish(results)


@app.command()
def table7(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    missing: Missing = False,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Of each cell; default 10, quick 2.")] = None,
    parties: Annotated[list[int] | None, typer.Option(min=2, max=16, help="Only these; may be repeated.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(SCHEMES)}.")] = None,
    schedule: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(seven.SCHEDULES)}.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Only these: digits, BloodMNIST, DermaMNIST.")] = None,
    bloodmnist: Blood = None,
    dermamnist: Derma = None,
    weights: Weights = None,
) -> None:
    """Accuracy of an image model by encryption and number of parties: a top layer, and a whole ResNet-18."""
    results = _results("table7", ("data", "schedule", "parties", "scheme"), quick, out, missing)
    if not redraw:
        seven.run(
            results,
            list(_asked(data, bloodmnist, dermamnist, weights).values()),
            repetitions or (2 if quick else 10),
            tuple(parties or ((4,) if quick else seven.PARTIES)),
            _known("--scheme", scheme, SCHEMES),
            _known("--schedule", schedule or (["published"] if quick else None), tuple(seven.SCHEDULES)),
        )
    seven_page.publish(results)


def _asked(
    data: list[str] | None, bloodmnist: Path | None, dermamnist: Path | None, weights: Path | None
) -> dict[str, Pictures]:
    """The data sets of images that are asked for by name, or else those that are at hand."""
    files = {DIGITS: None, BLOOD: bloodmnist, DERMA: dermamnist}
    named = _known("--data", data, tuple(files))
    wanted = [name for name in named if data or name == DIGITS or files[name]]
    kind, size = ("resnet18", 224) if weights else ("efficientnet-lite0", 112)
    backbone = Backbone(kind, weights or packaged_weights(), size) if bloodmnist or dermamnist else None
    return {name: read_pictures(name, files[name], backbone) for name in wanted}


@app.command()
def timings(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    params: Annotated[list[int] | None, typer.Option(min=1, help="Only so many; may be repeated.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(SCHEMES)}.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after a warm-up.")] = 9,
    concrete: Annotated[str | None, typer.Option(help="The python of an environment with concrete-python.")] = None,
) -> None:
    """Tables VI, VIII, IX and 11.5 million parameters: times and sizes of the encryptions."""
    results = _results("timings", ("params", "scheme"), quick, out)
    if not redraw:
        sizes = tuple(params or (times.QUICK_SIZES if quick else times.SIZES))
        times.run(results, sizes, repeats, _known("--scheme", scheme, SCHEMES), concrete)
    times.publish(results)


@app.command()
def overhead(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="After the first; default 20, quick 5.")] = None,
    params: Annotated[list[int] | None, typer.Option(min=1, help="Only so many; may be repeated.")] = None,
    parties: Annotated[list[int] | None, typer.Option(min=3, max=64, help="Only these; may be repeated.")] = None,
) -> None:
    """The paper's formula for the total overhead against measured rounds."""
    results = _results("overhead", ("params", "scheme", "parties"), quick, out)
    if not redraw:
        sizes = tuple(params or (over.QUICK_PARAMS if quick else over.PARAMS))
        over.run(results, rounds or (5 if quick else 20), sizes, tuple(parties or over.PARTIES))
    over.publish(results)


@app.command()
def attacks(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    missing: Missing = False,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Of each attack; default 2, quick 1.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(attempts.KINDS)}.")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(ATTACKS)}.")] = None,
    images: Annotated[Path | None, typer.Option(help="A medmnist .npz; default: scikit-learn's digits.")] = None,
) -> None:
    """Table I: membership, missing values, images out of gradients; against what each place of the tree sees."""
    results = _results("attacks", ("kind", "target", "method"), quick, out, missing)
    if not redraw:
        attempts.run(
            results,
            repetitions or (1 if quick else 2),
            _known("--kind", kind, attempts.KINDS),
            images,
            attempts.QUICK if quick else attempts.FULL,
            _known("--method", method, ATTACKS),
        )
    attempts_page.publish(results)


@app.command()
def scoring(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    patients: Annotated[list[int] | None, typer.Option(min=1, max=8192, help="Only so many; may be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after a warm-up.")] = 5,
    way: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(scores.WAYS)}.")] = None,
) -> None:
    """Deployment: encrypted scoring, its times, sizes and differences from scores in the clear."""
    results = _results("scoring", ("way", "model", "patients"), quick, out)
    if not redraw:
        sizes = tuple(patients or (scores.QUICK_PATIENTS if quick else scores.PATIENTS))
        scores.run(results, sizes, repeats, _known("--way", way, tuple(scores.WAYS)))
    scores.publish(results)


@app.command()
def adpfl(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    images: Annotated[Path | None, typer.Option(help="An .npz with images X and masks M, of PH2 say.")] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Only these; default 1, 2, 3, quick 1.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(ad.ARMS)}.")] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="In one process, without nodes and encryption.")
    ] = False,
) -> None:
    """ADP-FL: skin lesions outlined by a U-Net, with and without noise."""
    results = _results("adpfl", ("arm", "seed"), quick, out)
    if redraw:
        ad.publish(results)
        return
    if images is None or not images.is_file():
        raise WardtreeError(f"--images: expected the .npz file of images and masks, came {images or 'nothing'}")
    ad.run(
        results, images, tuple(seed or (ad.SEEDS[:1] if quick else ad.SEEDS)), _known("--arm", arm, ad.ARMS), simulated
    )


@app.command()
def dpresnet(
    out: Out = None,
    redraw: Redraw = False,
    images: Annotated[Path | None, typer.Option(help="BloodMNIST: an .npz with images and labels.")] = None,
    hospitals: Annotated[list[int] | None, typer.Option(min=3, max=64, help="Only these; default 5, 10, 20.")] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help=f"Only these: {', '.join((*dpr.ARMS, *dpr_checks.CHECKS))}.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Rounds after which what was done is kept.")] = 4,
    flower: Annotated[str, typer.Option(help="The python of an environment with flwr.")] = sys.executable,
) -> None:
    """DPResNet: blood cells named by a ResNet-9 of many hospitals; goes on where it was interrupted."""
    results = _results("dpresnet", ("arm", "hospitals"), False, out)
    if not redraw:
        if images is None or not images.is_file():
            raise WardtreeError(f"--images: expected the .npz file of images and labels, came {images or 'nothing'}")
        asked = _known("--arm", arm, (*dpr.ARMS, *dpr_checks.CHECKS))
        trained = tuple(one for one in asked if one in dpr.ARMS)
        for _ in dpr.run(results, images, tuple(hospitals or dpr.HOSPITALS), trained, at_once):
            dpr_page.publish(results)
        for _ in dpr_checks.run(results, images, [one for one in asked if one not in trained], flower):
            dpr_page.publish(results)
    dpr_page.publish(results)


@app.command()
def medhe(
    quick: Quick = False,
    out: Out = None,
    redraw: Redraw = False,
    images: Annotated[Path | None, typer.Option("--images", "--bloodmnist", help="BloodMNIST: an .npz file.")] = None,
    part: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(med.PARTS)}.")] = None,
    params: Annotated[list[int] | None, typer.Option(min=1, help="The wire: only so many; may be repeated.")] = None,
    data: Annotated[list[str] | None, typer.Option(help=f"Only these: {', '.join(med.SETS)}.")] = None,
) -> None:
    """MedHE: few values a round. Bytes on sockets, accuracy in pairs, ablations; goes on where it was interrupted."""
    results = _results("medhe", ("part", "set", "schedule", "arm"), quick, out)
    if images is not None and not images.is_file():
        raise WardtreeError(f"--images: expected the .npz file of images and labels, came {images}")
    if not redraw:
        sets = med.QUICK_SETS if quick and not data else _known("--data", data, tuple(med.SETS))
        sizes = tuple(params or (med.QUICK_PARAMS if quick else (medhe_wire.PARAMS,)))
        med.run(results, _known("--part", part, med.PARTS), images, sizes, sets)
    medhe_page.publish(results)


def _known(option: str, asked: list[str] | None, known: tuple[T, ...]) -> tuple[T, ...]:
    for one in asked or ():
        if one not in known:
            raise WardtreeError(f"{option}: expected one of {', '.join(known)}, came {one!r}")
    return tuple(one for one in known if asked is None or one in asked)


@app.command("all")
def everything(
    quick: Quick = False,
    out: Out = None,
    bloodmnist: Blood = None,
    dermamnist: Derma = None,
    weights: Weights = None,
) -> None:
    """All of them, one after the other; says how long each took, and how long those of published size did."""
    of_images = [
        partial(command, quick=quick, out=out, bloodmnist=bloodmnist, dermamnist=dermamnist, weights=weights)
        for command in (table3, table7)
    ]
    of_images.append(partial(medhe, quick=quick, out=out, images=bloodmnist))
    others = [partial(command, quick=quick, out=out) for command in (attacks, table5, timings, overhead, scoring)]
    whole = time.monotonic()
    for command in (*of_images, *others):
        began = time.monotonic()
        command()
        print(f"{command.func.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(f"all: {time.monotonic() - whole:.0f} s", file=sys.stderr)
    kept = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}
    took = {name: each["seconds"] for name, each in kept.items() if "seconds" in each and "quick" in each}
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    print(f"at the published sizes, when {RESULTS} was made: {sum(took.values()):.0f} s ({each})", file=sys.stderr)


def main() -> None:
    """The program: an error of the user's is one line."""
    try:
        app()
    except WardtreeError as error:
        for line in str(error).splitlines():
            print(f"wardtree: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
