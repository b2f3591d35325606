"""``wardtree features``: what a frozen network sees in a hospital's images, computed once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from keys.errors import WardtreeError
from node.tasks.backbones import KINDS, Backbone, packaged_weights


def features(
    images: Annotated[
        Path, typer.Argument(help="An .npz file (images, labels), MedMNIST's, or a folder for each class.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes in the order of the labels, with commas between.")
    ] = None,
    medmnist: Annotated[
        str | None,
        typer.Option(help="The file is this one of MedMNIST: its checksum is compared, it names the classes."),
    ] = None,
    backbone: Annotated[str, typer.Option(help=f"{' or '.join(KINDS)}.")] = "efficientnet-lite0",
    weights: Annotated[
        Path | None, typer.Option(help="The file of its weights; default: that of the installed package.")
    ] = None,
    size: Annotated[
        int,
        typer.Option(min=32, max=1024, help="Pixels to a side that images are brought to before they are looked at."),
    ] = 224,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads to compute with.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Compute what a frozen network sees in each image, once, for studies of `model = "head"`.

    It runs in a room that reads the images and the weights, writes nothing and has no network. The file that comes out
    is patients' data as the images are: keep it in the hospital, and erase it with the study.

    Prints the lines that go into the study, the same at every hospital, and into one's own node.toml.

    Examples:

      wardtree features dermamnist.npz --medmnist dermamnist --out home/features.npz

      wardtree features scans/ --classes benign,malignant --backbone resnet18 --weights resnet18.pth --out features.npz
    """
    from node.features import make_features

    if backbone not in KINDS:
        raise WardtreeError(f"--backbone: expected {' or '.join(KINDS)}, came {backbone!r}")
    if weights is None and backbone != "efficientnet-lite0":
        raise WardtreeError(f"--weights: expected a file for {backbone}: {KINDS[backbone].source}")
    names = _classes(classes, medmnist)
    used = Backbone(backbone, weights or packaged_weights(), size)
    if as_json:
        line, rows = make_features(images, names, used, out, medmnist, threads)
        typer.echo(
            json.dumps({"backbone": line, "features": used.length, "classes": names, "rows": rows, "out": str(out)})
        )
        return
    # A room is forked while this is on: no thread of its own.
    with Progress(console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task("images", total=None, visible=False)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True, refresh=True)

        line, rows = make_features(images, names, used, out, medmnist, threads, show)
    typer.echo(f"{out}: {used.length} features of {rows} images. In the study, the same for everyone:\n")
    typer.echo('[task]\nclass = "image"\n\n[task.options]\nmodel = "head"')
    typer.echo(
        f"classes = {json.dumps(names, ensure_ascii=False)}\nbackbone = {json.dumps(line)}\nfeatures = {used.length}"
    )
    typer.echo(f"\nIn node.toml, under [data]:\n\nfeatures = {json.dumps(str(out.resolve()))}")


def _classes(classes: str | None, medmnist: str | None) -> list[str]:
    if medmnist is not None and classes is None:
        from node.images import medmnist_info

        return list(medmnist_info(medmnist)["label"].values())
    names = [name.strip() for name in (classes or "").split(",")]
    if len(names) < 2 or not all(names):
        raise WardtreeError("--classes: expected two or more names with commas between, or --medmnist")
    return names
