"""Commands about data sets: check, stats, show, convert."""

import dataclasses
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsedet.cli.options import Json, Overrides, Seed, overrides
from sparsedet.cli.printing import print_table, warn

if TYPE_CHECKING:
    from sparsedet.detection.data.check import SplitReport

app = typer.Typer(help="Look at data sets: check, repair, count, show, convert.", no_args_is_help=True)


class Split(StrEnum):
    """The splits of a data set."""

    TRAIN = "train"
    VAL = "val"


class Target(StrEnum):
    """Formats to convert to."""

    COCO = "coco"
    YOLO = "yolo"
    VOC = "voc"


MAX_FAULTS = 20  # shown of each split; --json gives all

Data = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A COCO JSON file with --images, a recipe or suite, or the name of a shipped one."
    ),
]
Images = Annotated[Path | None, typer.Option("--images", help="Folder of the images of a COCO JSON file.")]


@app.command()
def check(
    file: Data,
    images: Images = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="COPY", help="Write a repaired copy of a COCO JSON file.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="PICTURE", help="Write examples of each finding, .jpg or .png.")
    ] = None,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check annotations, categories of both splits and every image file; exit code 1 where training would refuse."""
    from sparsedet.benchmark.data_sources import check_source, repair_source
    from sparsedet.benchmark.data_views import write_findings

    if fix is None:
        splits = check_source(file, images, overrides(set_))
    else:
        copy, num_changes = repair_source(file, images, fix, overrides(set_))
        splits = [copy]
        print(f"written: {fix}, {num_changes} changes listed beside it", file=sys.stderr)
    if pictures is not None:
        write_findings(splits, pictures)
        print(f"written: {pictures}", file=sys.stderr)
    reports = [split.report() for split in splits]
    if as_json:
        print(json.dumps([dataclasses.asdict(report) for report in reports], default=str))
    else:
        _print_reports(reports)
    if any(report.faults for report in reports):
        raise typer.Exit(1)


@app.command()
def stats(
    file: Data,
    images: Images = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Write plots.")] = None,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Count images and boxes, and show how sizes, shapes and categories are spread; images are not opened."""
    from sparsedet.benchmark.data_sources import read_source
    from sparsedet.benchmark.data_views import write_plots
    from sparsedet.detection.data.statistics import describe

    splits = [describe(name, dataset) for name, dataset in read_source(file, images, overrides(set_), warn)]
    if plot is not None:
        write_plots(splits, file, plot)
        print(f"written: {plot}", file=sys.stderr)
    rows = [{**dataclasses.asdict(split), "spread": split.spread} for split in splits]
    for row in rows:
        del row["values"]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['name']}: {row['num_images']} images ({row['num_images_without_annotations']} without annotations), "
            f"{row['num_boxes']} boxes, {row['num_crowds']} crowds"
        )
        print("boxes by size: " + ", ".join(f"{size} {count}" for size, count in row["boxes_per_size"].items()))
        print_table(
            [
                {"category": name, "boxes": count, "images": row["images_per_category"][name]}
                for name, count in row["boxes_per_category"].items()
            ]
        )
        print_table([{"measure": name, **spread} for name, spread in row["spread"].items() if spread])


@app.command()
def show(
    file: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PICTURE", help="The picture to write, .jpg or .png.")
    ],
    images: Images = None,
    split: Annotated[Split, typer.Option(help="Split of a recipe.")] = Split.TRAIN,
    count: Annotated[int, typer.Option(min=1, help="Number of images, evenly spread.")] = 12,
    transforms: Annotated[
        bool, typer.Option("--transforms", help="Also show each image as the recipe's transforms make it.")
    ] = False,
    seed: Seed = None,
    set_: Overrides = None,
) -> None:
    """Write a picture of images with their ground truth, and of what training makes of them."""
    from sparsedet.benchmark.data_sources import open_split
    from sparsedet.benchmark.data_views import write_images

    dataset = open_split(file, images, overrides(set_), split == Split.TRAIN, seed or 0, warn)
    write_images(dataset, output, count, transforms)
    print(f"written: {output}", file=sys.stderr)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="To coco: the data.yaml of a YOLO data set, or the folder of a Pascal VOC one. "
            "Else: a COCO JSON file with --images, or a recipe.",
        ),
    ],
    to: Annotated[Target, typer.Option("--to", help="Format to write.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; none may exist.")],
    images: Images = None,
    set_: Overrides = None,
) -> None:
    """Convert annotations from and to YOLO and Pascal VOC; image files stay where they are."""
    from sparsedet.benchmark.data_sources import convert_source

    conversion = convert_source(source, to, images, output, overrides(set_), warn)
    for note in conversion.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"written: {len(conversion.files)} files in {output}", file=sys.stderr)
    if conversion.images_dir is not None:
        for name in conversion.files:
            print(f"sparsedet data check {output / name} --images {conversion.images_dir}")


def _print_reports(reports: "list[SplitReport]") -> None:
    for report in reports:
        print(f"{report.name}: {report.annotations}")
        print(
            f"  {report.num_images} images ({report.num_images_without_annotations} without annotations), "
            f"{report.num_boxes} boxes, {report.num_crowds} crowds"
        )
        print("  " + ", ".join(f"{name} {count}" for name, count in report.boxes_per_category.items()))
        print("  " + ", ".join(f"{size} {count}" for size, count in report.boxes_per_size.items()))
        for finding in report.findings:
            print(f"  {finding.policy} {finding.kind}: {finding}")
    for report in reports:
        for fault in report.faults[:MAX_FAULTS]:
            print(f"fault: {fault}")
        if len(report.faults) > MAX_FAULTS:
            print(f"… and {len(report.faults) - MAX_FAULTS} more faults in {report.annotations}")
    num_faults = sum(len(report.faults) for report in reports)
    faults = "1 fault" if num_faults == 1 else f"{num_faults} faults"
    print(f"{faults}: training refuses these data" if num_faults else "no faults found")
