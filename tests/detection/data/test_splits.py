import shutil
from pathlib import Path

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
