import pytest

from sparsedet.common.errors import ConfigError

FASTER = "faster.yaml"


def test_layers_are_left_out_by_their_upstream_names(files, tmp_path, translate):
    path = tmp_path / "a.yaml"
    path.write_text((files / FASTER).read_text() + (files / "faster_level_wise.tail.yaml").read_text())
    kwargs = "sparsity.scheduler.kwargs"
    for override, expected in {
        f"{kwargs}.no_prune_keyword=layer0": ["backbone.conv1"],
        f"{kwargs}.no_prune_keyword=lateral": [f"neck.lateral.{level}.conv" for level in (2, 3, 4, 5)],
        f"{kwargs}.no_prune_keyword=": [],
        f"{kwargs}.no_prune_layer=backbone_neck_roi_head.roi_head.conv_loc, bbox_head.bbox_head.fc7": [
            "box_head.cls_pred", "box_head.box_pred", "rpn.box_pred", "box_head.fc2",
        ],
        f"{kwargs}.no_prune_layer=roi_head.conv3x3, bbox_head.fc6": [
            "box_head.cls_pred", "box_head.box_pred", "rpn.conv", "box_head.fc1",
        ],
    }.items():  # fmt: skip
        data, _ = translate(path, override)
        assert data["sparsity"]["targets"]["exclude"] == expected
    for override in (f"{kwargs}.no_prune_keyword=lateal", f"{kwargs}.no_prune_layer=bbox_head.fc8"):
        with pytest.raises(
            ConfigError, match=r"no_prune_(keyword|layer): expected names of layers in the file's network"
        ):
            translate(path, override)
