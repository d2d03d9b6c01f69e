"""The command that runs a detector on image files: predict."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparsedet.cli.options import Device, Json, Overrides, overrides


def add_to(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command()(predict)


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a run folder, or a compact file of one.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("runs/predict"),
    score: Annotated[float, typer.Option(min=0, max=1, help="Leave out what is found with a lower score.")] = 0.3,
    device: Device = "auto",
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Detect objects in image files: COCO JSON and annotated pictures; exit code 1 where a file was passed over."""
    from sparsedet.benchmark.console import Console
    from sparsedet.benchmark.prediction import Predictor, predict_to_folder
    from sparsedet.detection.data.findings import printable

    predictor = Predictor.open(checkpoint, device, overrides(set_))
    try:
        content, skipped = predict_to_folder(predictor, images, output, score, Console())
    except KeyboardInterrupt:
        print(f"interrupted: the pictures so far are in {output}", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(content))
    else:
        print(f"{len(content['annotations'])} objects in {len(content['images'])} images, {len(skipped)} skipped")
        for one in skipped:
            print(f"skipped: {printable(one.path)}")
    print(f"written: {output}", file=sys.stderr)
    if skipped:
        raise typer.Exit(1)
