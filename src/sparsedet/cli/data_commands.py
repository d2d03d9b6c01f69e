"""Commands about data sets: check."""

import dataclasses
import json

import typer

from sparsedet.cli.options import Config, Json, Overrides, overrides

app = typer.Typer(help="Look at data sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep ``check`` a subcommand while it is the only one."""


@app.command()
def check(file: Config, set_: Overrides = None, as_json: Json = False) -> None:
    """Check the data of a recipe: annotations, categories of both splits, every image file."""
    from sparsedet.benchmark.suite import load_suite
    from sparsedet.common.shipped import find_config
    from sparsedet.detection.data.check import check as check_data

    suite = load_suite(find_config(file), overrides(set_))
    reports = [check_data(config) for config in dict.fromkeys(loaded.recipe.data for loaded in suite.recipes)]
    if as_json:
        print(json.dumps([dataclasses.asdict(report) for report in reports]))
        return
    for report in reports:
        for split in (report.train, report.val):
            print(f"{split.name}: {split.annotations}")
            print(
                f"  {split.num_images} images ({split.num_images_without_annotations} without annotations), "
                f"{split.num_boxes} boxes, {split.num_crowds} crowds"
            )
            print("  " + ", ".join(f"{name} {count}" for name, count in split.boxes_per_category.items()))
            print("  " + ", ".join(f"{size} {count}" for size, count in split.boxes_per_size.items()))
        for warning in report.warnings:
            print(f"warning: {warning}")
        print("no faults found")
