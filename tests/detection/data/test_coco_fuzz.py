"""Whatever an annotation file holds, reading it ends in a sound data set or in our own error."""

import json
import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.coco import read_coco

TEXT = st.text(st.characters(codec=None), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(-3, 70) | st.floats() | st.floats(-9, 70) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
BOXES = st.lists(st.floats(-40, 90) | st.integers(-40, 90), min_size=4, max_size=4)
KEYS = {
    "images": ["id", "file_name", "width", "height"],
    "categories": ["id", "name"],
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd"],
}
DAMAGES = st.one_of(
    st.tuples(st.sampled_from(sorted(KEYS)), st.integers(0, 2), st.integers(0, 5), VALUES),
    st.tuples(st.just("annotations"), st.integers(0, 2), st.just(3), BOXES),
    st.tuples(st.sampled_from(["annotations", "images"]), st.integers(0, 2), st.just(0), st.integers(-2, 4)),
    st.tuples(st.sampled_from(sorted(KEYS)), st.none(), st.none(), VALUES),
)


def damaged(data, damages):
    for key, index, field, value in damages:
        entries = data[key]
        if index is None:
            data[key] = value
        elif isinstance(entries, list) and len(entries) > index and isinstance(entries[index], dict):
            names = KEYS[key]
            entries[index][names[field % len(names)]] = value
    return data


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(DAMAGES, min_size=1, max_size=4))
def test_reading_ends_in_sound_data_or_our_error(tmp_path, make_coco, damages):
    path = tmp_path / "fuzzed.json"
    path.write_text(json.dumps(damaged(make_coco(images=3, boxes=[[1, 1, 5, 5], [2, 2, 9, 9], [3, 3, 8, 8]]), damages)))
    try:
        dataset, findings = read_coco(path, tmp_path)
    except DatasetError as error:
        message = str(error)
    else:
        message = ""
        check_sound(dataset)
        assert all(line.isprintable() for line in findings.warnings)
    assert message.startswith(str(path)) or not message
    assert message.replace("\n", "").isprintable()


def check_sound(dataset):
    ids = [annotation.id for annotation in dataset.annotations]
    assert len(set(ids)) == len(ids)
    sizes = {image.id: (image.width, image.height) for image in dataset.images}
    for annotation in dataset.annotations:
        x, y, width, height = annotation.bbox
        assert annotation.id >= 1
        assert min(x, y) >= 0
        assert min(width, height) > 0
        assert x + width <= sizes[annotation.image_id][0] + 1e-9
        assert y + height <= sizes[annotation.image_id][1] + 1e-9
        assert annotation.area > 0
        assert math.isfinite(annotation.area)
