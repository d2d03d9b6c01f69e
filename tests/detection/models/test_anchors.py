import pytest
import torch

from sparsedet.common.errors import ConfigError
from sparsedet.detection.models.anchors import Anchors, per_anchor

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones


@pytest.mark.parametrize("name", ["retinanet_r50_1x", "retinanet_r18_improve", "faster_rpn"])
def test_legacy_anchors_equal_ups(golden, name):
    expected = golden("golden_units.json")["base_anchors"][name]
    anchors = Anchors(scales=tuple(expected["scales"]), ratios=tuple(expected["ratios"]))
    for stride, boxes in expected["per_stride"].items():
        ours = anchors.base(int(stride), legacy=True) - ONE_PIXEL
        torch.testing.assert_close(ours, torch.tensor(boxes, dtype=torch.float64), rtol=0, atol=1e-6)
    stride = int(next(iter(expected["per_stride"])))
    grid = anchors.grid((2, 3), stride, legacy=True, device=torch.device("cpu"))
    torch.testing.assert_close(grid - ONE_PIXEL, torch.tensor(expected["grid_2x3_first_level"]), rtol=0, atol=1e-5)


def test_native_anchors_keep_area_and_ratio_and_sit_in_the_middle_of_the_cell():
    anchors = Anchors(scales=(2.0, 3.0), ratios=(0.5, 1.0))
    boxes = anchors.base(stride=10, legacy=False)
    size = boxes[:, 2:] - boxes[:, :2]
    assert anchors.num_per_cell == len(boxes) == 4
    assert size.prod(dim=1).tolist() == pytest.approx([400, 900, 400, 900])
    assert (size[:, 1] / size[:, 0]).tolist() == pytest.approx([0.5, 0.5, 1, 1])
    assert ((boxes[:, :2] + boxes[:, 2:]) / 2).flatten().tolist() == pytest.approx([5.0] * 8)


def test_grid_order_is_row_column_anchor():
    grid = Anchors(scales=(1.0, 2.0)).grid((2, 3), 8, legacy=False, device=torch.device("cpu"))
    assert grid.dtype == torch.float32
    assert grid[0].tolist() == [0, 0, 8, 8]
    assert grid[(1 * 3 + 2) * 2 + 1].tolist() == [12, 4, 28, 20]


@pytest.mark.parametrize(("ratio", "stride", "sides"), [(1e-3, 8, "253 x 0"), (1000.0, 8, "0 x 0")])
def test_sides_that_round_to_nothing_are_refused(ratio, stride, sides):
    anchors = Anchors(ratios=(1.0, ratio))
    with pytest.raises(ConfigError) as error:
        anchors.base(stride, legacy=True)
    assert str(error.value) == (
        f"anchors.ratios: expected sides of at least one pixel after legacy rounding, got {sides} from the ratio "
        f"{ratio:g} at stride {stride}. Choose a ratio nearer to 1."
    )
    for other in (anchors.base(stride, legacy=False), anchors.base(stride * 1024, legacy=True)):
        assert (other[:, 2:] > other[:, :2]).all()


def test_maps_become_rows_in_the_order_of_the_anchors():
    x = torch.arange(2 * 6 * 2 * 3).reshape(2, 6, 2, 3).to(torch.bfloat16)  # two anchors of three values
    rows = per_anchor(x, 3)
    assert rows.dtype == torch.float32
    assert rows.shape == (2, 12, 3)
    assert rows[1, (0 * 3 + 2) * 2 + 1].tolist() == x[1, 3:, 0, 2].tolist()


def test_scales_must_be_positive():
    with pytest.raises(ValueError, match="greater than 0"):
        Anchors(scales=(-1.0,))
