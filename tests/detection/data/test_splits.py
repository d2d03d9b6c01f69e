import shutil
from pathlib import Path

import pytest

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.splits import open_splits


def test_splits_are_ready_and_their_hash_tells_annotations_apart(tiny_data, tmp_path):
    splits = open_splits(DataConfig(root=tiny_data), seed=4)
    assert (len(splits.train), len(splits.val), splits.train.seed) == (6, 5, 4)
    assert splits.train.coco.category_ids == (3, 7)
    assert splits.warnings == ()
    copy = shutil.copytree(tiny_data, tmp_path / "copy")
    assert open_splits(DataConfig(root=copy), seed=0).hash == splits.hash
    annotations = Path(copy / "annotations" / "val.json")
    annotations.write_text(annotations.read_text().replace('"area": ', '"area":  '))
    assert open_splits(DataConfig(root=copy), seed=0).hash != splits.hash


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            {"num_classes": 80},
            r"data.num_classes: expected 80 categories as the recipe says, got 2 in .*train.json. Use",
        ),
        ({"num_train_images": 7}, r"data.num_train_images: expected 7 training images as the recipe says, got 6 in"),
    ],
)
def test_counts_that_the_recipe_promises(counts, message, tiny_data):
    with pytest.raises(DatasetError, match=message):
        open_splits(DataConfig(root=tiny_data, **counts), seed=0)
    open_splits(DataConfig(root=tiny_data, num_classes=2, num_train_images=6), seed=0)
