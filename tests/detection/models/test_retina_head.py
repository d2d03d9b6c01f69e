import pytest
import torch

from sparsedet.common.errors import ConfigError
from sparsedet.detection.models.norms import SyncBatchNorm2d
from sparsedet.detection.models.retina_head import RetinaHeadConfig

MAPS = [torch.randn(2, 6, 8, 8), torch.randn(2, 6, 4, 4)]


def test_convolutions_are_shared_and_norms_are_not():
    head = RetinaHeadConfig(channels=5, num_convs=2).build(6, num_levels=2, num_anchors=3, num_classes=4)
    names = set(dict(head.named_parameters()))
    assert {name for name in names if name.startswith("cls_tower.convs")} == {
        "cls_tower.convs.0.weight",
        "cls_tower.convs.1.weight",
    }
    assert {"cls_tower.norms.1.0.weight", "cls_tower.norms.1.1.weight"} <= names
    fine, coarse = head(MAPS)
    with torch.no_grad():
        head.cls_tower.norms[1][0].weight.mul_(2)
    changed_fine, changed_coarse = head(MAPS)
    assert not torch.allclose(changed_fine.cls_logits, fine.cls_logits)
    torch.testing.assert_close(changed_coarse.cls_logits, coarse.cls_logits)


def test_norms_of_several_processes():
    config = RetinaHeadConfig(num_convs=1, norm="sync_batch_norm", sync_group_size=2)
    norms = config.build(6, num_levels=2, num_anchors=3, num_classes=4).box_tower.norms[0]
    assert [(type(norm), norm.num_features, norm.group_size) for norm in norms] == [(SyncBatchNorm2d, 6, 2)] * 2


def test_output_shapes():
    head = RetinaHeadConfig(norm="none", num_convs=1).build(6, num_levels=2, num_anchors=3, num_classes=4)
    for output, size in zip(head(MAPS), (8, 4), strict=True):
        assert output.cls_logits.shape == (2, 12, size, size)
        assert output.box_deltas.shape == (2, 12, size, size)
        assert output.iou_logits is None


def test_the_iou_branch_sits_on_the_box_tower():
    head = RetinaHeadConfig(iou_branch=True, num_convs=1).build(6, num_levels=2, num_anchors=3, num_classes=4)
    output = head(MAPS)[1]
    assert output.iou_logits.shape == (2, 3, 4, 4)
    torch.testing.assert_close(output.iou_logits, head.iou_pred(head.box_tower(MAPS[1], 1)))
    assert head.iou_pred.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert (head.iou_pred.bias == 0).all()


@pytest.mark.parametrize("num_levels", [1, 3])
def test_another_number_of_maps_is_refused(num_levels):
    head = RetinaHeadConfig().build(6, num_levels, num_anchors=3, num_classes=4)
    with pytest.raises(ConfigError) as error:
        head(MAPS)
    assert str(error.value) == (
        f"features: expected {num_levels} maps, one for each level of the head, got 2. "
        "Build the head for as many levels as the neck returns."
    )


def test_every_class_starts_with_the_prior_score():
    head = RetinaHeadConfig(prior=0.02).build(6, num_levels=1, num_anchors=1, num_classes=4)
    torch.testing.assert_close(head.cls_pred.bias.sigmoid(), torch.full((4,), 0.02))
    assert (head.box_pred.bias == 0).all()


@pytest.mark.parametrize(("init_std", "expected"), [(None, (2 / (9 * 64)) ** 0.5), (0.01, 0.01)])
def test_initial_weights_of_the_towers(init_std, expected):
    torch.manual_seed(0)
    head = RetinaHeadConfig(init_std=init_std).build(64, num_levels=1, num_anchors=1, num_classes=1)
    for conv in head.box_tower.convs:
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)


def test_a_head_may_consist_of_predictors_alone():
    head = RetinaHeadConfig(num_convs=0, channels=9).build(6, num_levels=2, num_anchors=1, num_classes=2)
    assert head(MAPS)[0].cls_logits.shape == (2, 2, 8, 8)
