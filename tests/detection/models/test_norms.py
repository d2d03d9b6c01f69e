import torch

from sparsedet.detection.models.norms import FixedStatsBatchNorm2d, conv_norm


def test_fixed_statistics_stay_while_weight_and_bias_are_trained():
    norm = FixedStatsBatchNorm2d(2).train()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    x = torch.randn(4, 2, 3, 3)
    norm(x).square().sum().backward()
    assert norm.running_mean.tolist() == [1.0, 2.0]
    assert not norm.training
    assert norm.weight.grad.abs().sum() > 0
    assert norm.bias.grad.abs().sum() > 0
    torch.testing.assert_close(norm(x), (x - torch.tensor([1.0, 2.0])[:, None, None]) / (1 + 1e-5) ** 0.5)


def test_conv_norm_has_a_bias_or_a_norm():
    assert set(conv_norm(3, 4, 3, "none").state_dict()) == {"conv.weight", "conv.bias"}
    with_norm = conv_norm(3, 4, 3, "batch_norm")
    assert set(dict(with_norm.named_parameters())) == {"conv.weight", "norm.weight", "norm.bias"}
    assert with_norm(torch.zeros(2, 3, 5, 6)).shape == (2, 4, 5, 6)
