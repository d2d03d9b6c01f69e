import pytest
import torch
import torch.nn.functional as F

from sparsedet.detection.models.fpn import FPNConfig

FEATURES = [torch.randn(1, 3, 9, 10), torch.randn(1, 5, 5, 5)]


@pytest.mark.parametrize("norm", ["batch_norm", "none"])
@pytest.mark.parametrize("extra", ["conv", "pool"])
def test_maps_follow_the_definition(norm, extra):
    fpn = FPNConfig(channels=4, num_levels=4, extra=extra, norm=norm).build((3, 5), lowest_level=3).eval()
    maps = fpn(FEATURES)
    top = fpn.lateral["4"](FEATURES[1])
    fine = fpn.lateral["3"](FEATURES[0]) + F.interpolate(top, size=(9, 10), mode="nearest")
    expected = [fpn.output["3"](fine), fpn.output["4"](top)]
    if extra == "conv":
        expected.append(fpn.extra["5"](top))
        expected.append(fpn.extra["6"](expected[-1]))
    else:
        expected.append(expected[-1][:, :, ::2, ::2])
        expected.append(expected[-1][:, :, ::2, ::2])
    assert [tuple(m.shape[-2:]) for m in maps] == [(9, 10), (5, 5), (3, 3), (2, 2)]
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_pooling_and_missing_extra_levels_have_no_parameters():
    plain = FPNConfig(channels=4, num_levels=2).build((3, 5), lowest_level=3)
    pooled = FPNConfig(channels=4, num_levels=4, extra="pool").build((3, 5), lowest_level=3)
    assert len(plain(FEATURES)) == 2
    assert set(plain.state_dict()) == set(pooled.state_dict())


def test_initial_weights():
    torch.manual_seed(0)
    glorot = FPNConfig(channels=64, num_levels=2, norm="none").build((64, 32), lowest_level=3)
    normal = FPNConfig(channels=64, num_levels=2, init_std=0.01).build((64, 32), lowest_level=3)
    assert glorot.lateral["4"].conv.weight.std().item() == pytest.approx((2 / (32 + 64)) ** 0.5, rel=0.05)
    assert glorot.output["3"].conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)
    assert glorot.lateral["4"].conv.bias.abs().max() == 0
    assert normal.lateral["4"].conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
