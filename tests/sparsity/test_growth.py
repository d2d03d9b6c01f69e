"""Drop and grow: on arrays by hand, and in training."""

import math

import pytest
import torch
from torch import nn

from sparsedet.common.errors import SparseDetError
from sparsedet.sparsity import Block, Dynamic, Sparsifier, SparsityConfig, Targets, Uniform, Unstructured
from sparsedet.sparsity.growth import swap

KEEP = torch.tensor([[True, True, True, True, False, False, False, False]])
SCORES = torch.tensor([[5.0, 1.0, 4.0, 2.0, 0.0, 0.0, 0.0, 0.0]])


def places(mask):
    return mask.flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("gradient", "share", "expected"),
    [
        ([9, 9, 9, 7, 1, -8, 3, 2], 0.5, [0, 1, 2, 5]),  # 1 and 3 go; of the rest 1 (9) and 5 (8) come
        ([9, 0, 9, 0, 1, 8, 3, 2], 0.5, [0, 2, 5, 6]),
        ([9, 0, 9, 0, 1, 8, 3, 2], 0.49, [0, 2, 3, 5]),  # one of four, rounded down
        ([9, 0, 9, 0, 1, 8, 3, 2], 0.2, [0, 1, 2, 3]),
        ([0, 0, 0, 0, 1, 2, 3, 4], 1.0, [4, 5, 6, 7]),
        ([0, math.nan, 0, math.inf, 1, 2, -math.inf, 0], 0.5, [0, 2, 4, 5]),
        ([0, 0, 0, 0, 1e-40, 3e-41, 2e-41, 1e-42], 0.5, [0, 2, 4, 5]),
        ([0, 0, 0, 0, 3e38, 2e38, 1e38, 0], 0.5, [0, 2, 4, 5]),
    ],
)
def test_by_hand(gradient, share, expected):
    found = swap(Unstructured(), KEEP, SCORES, torch.tensor([gradient], dtype=torch.float32), share)
    assert places(found) == expected
    assert found.dtype == torch.bool


def test_what_is_kept_at_zero_goes_before_what_is_pruned():
    scores = torch.tensor([[5.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    gradient = torch.tensor([[0.0, 0, 0, 0, 1, 2, 3, 0]])
    assert places(swap(Unstructured(), KEEP, scores, gradient, 0.25)) == [0, 2, 3, 6]


def test_blocks_move_as_a_whole():
    keep = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 0]] * 2, dtype=torch.bool)
    scores = torch.where(keep, torch.tensor([[3.0, 3, 0, 0, 1, 2, 0, 0]] * 2), 0.0)
    gradient = torch.tensor([[0.0, 0, 2, 2, 0, 0, 0, 3]] * 2)
    found = swap(Block(shape=(2, 2)), keep, scores, gradient, 0.5)  # norms: 2 * 2 and 3 * sqrt(2) = 4.2
    assert places(found) == [0, 1, 6, 7, 8, 9, 14, 15]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 10)
        self.second = nn.Linear(10, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.unused = nn.Linear(5, 5)

    def forward(self, x):
        return self.frozen(self.second(self.first(x).tanh()))


CONFIG = SparsityConfig(
    schedule=Dynamic(sparsity=0.6, drop_fraction=0.5, stop=0.8),
    update_interval=3,
    allocation=Uniform(),
    targets=Targets(include_frozen=True),
)


def data(seed):
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(seed))


def loss_of(net, step, passes):
    return [(net(data(passes * step + index)) - 1).square().mean() / passes for index in range(passes)]


def dense_gradients(net, step, passes):
    """Gradient of every entry, by another copy of the network without hooks."""
    plain = Net()
    plain.load_state_dict(net.state_dict())
    sum(loss_of(plain, step, passes)).backward()
    return {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("kind", ["sgd", "adam", "amsgrad"])
def test_a_run(kind, passes):
    net = Net()
    optimizer = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
        "adam": lambda: torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=0.01),
        "amsgrad": lambda: torch.optim.AdamW(net.parameters(), lr=0.01, amsgrad=True),
    }[kind]()
    sparsifier = Sparsifier(net, CONFIG)
    sparsifier.attach(optimizer)
    total, old, gradients = 15, {}, {}
    for step in range(total):
        weights = {name: net.get_parameter(name).detach().clone() for name in old}
        is_new = sparsifier.before_step(step, total)
        masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
        assert is_new == (step in (0, 3, 6, 9))  # 12 = 0.8 * 15 is the end
        for mask in masks.values():
            assert int((~mask).sum()) == round(0.6 * mask.numel())
        for name in old:
            if not is_new or name.startswith(("frozen", "unused")):
                assert torch.equal(masks[name], old[name])
                continue
            check_swap(name, old[name], masks[name], weights[name], gradients[name], step)
            grown = masks[name] & ~old[name]
            assert not net.get_parameter(name)[grown].any()
            for value in optimizer.state[net.get_parameter(name)].values():
                if torch.is_tensor(value) and value.shape == grown.shape:
                    assert not value[grown | ~masks[name]].any()
                    assert value[masks[name] & old[name]].any()
        gradients = dense_gradients(net, step, passes)
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        for loss in loss_of(net, step, passes):
            loss.backward()
        kept = torch.cat([gradients[name][masks[name]] for name in ("first.weight", "second.weight")])
        biases = torch.cat([gradients[name] for name in ("first.bias", "second.bias")])
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
        assert norm.item() == pytest.approx(torch.cat([kept, biases]).norm().item(), rel=1e-5)
        optimizer.step()
        old = masks
        for name, mask in masks.items():
            assert not net.get_parameter(name)[~mask].view(torch.int32).any()


def check_swap(name, old, new, weight, gradient, step):
    """The mask is what the definition gives, by sorting."""
    share = 0.5 / 2 * (1 + math.cos(math.pi * step / 12))
    kept = old.flatten().nonzero().flatten()
    num_moved = int(share * kept.numel())
    order = weight.flatten()[kept].abs().argsort()
    stays = set(kept[order[num_moved:]].tolist())
    candidates = [index for index in range(old.numel()) if index not in stays]
    largest = sorted(candidates, key=lambda index: -gradient.flatten()[index].abs().item())[:num_moved]
    assert set(places(new)) == stays | set(largest), name
    assert num_moved > 0


def test_a_weight_without_gradient_keeps_its_mask():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = Sparsifier(net, CONFIG)
    sparsifier.attach(optimizer)
    sparsifier.before_step(0, 15)
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    assert not sparsifier.before_step(3, 15)  # nothing was trained since: no gradient at all
    assert all(torch.equal(mask, before[name]) for name, mask in sparsifier.masks.items())
    assert sparsifier.measure().measured_sparsity == pytest.approx(0.6, abs=0.01)


def test_gradients_are_held_for_one_step_only():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = Sparsifier(net, CONFIG)
    sparsifier.attach(optimizer)
    held = []
    for step in range(15):
        sparsifier.before_step(step, 15)
        loss_of(net, step, 1)[0].backward()
        held.append("gradients" in sparsifier.state_dict())
        optimizer.step()
    assert [step for step, is_held in enumerate(held) if is_held] == [2, 5, 8]


def test_diverged_weights_are_refused_by_name():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = Sparsifier(net, CONFIG)
    sparsifier.attach(optimizer)
    for step in range(3):
        sparsifier.before_step(step, 15)
        loss_of(net, step, 1)[0].backward()
        optimizer.step()
    net.second.weight.data[sparsifier.masks["second.weight"]] = math.nan
    with pytest.raises(SparseDetError, match=r"second.weight: expected finite weights, got inf or NaN"):
        sparsifier.before_step(3, 15)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_gradients_that_can_be_differentiated_again_are_held_without_their_graph():
    net = Net()
    sparsifier = Sparsifier(net, CONFIG)
    sparsifier.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    sparsifier.before_step(0, 15)
    sparsifier.before_step(2, 15)
    expected = dense_gradients(net, 2, 2)
    for loss in loss_of(net, 2, 2):
        loss.backward(create_graph=True)
    held = sparsifier.state_dict()["gradients"]
    mask = sparsifier.masks["first.weight"]
    assert not any(gradient.requires_grad for gradient in held.values())
    torch.testing.assert_close(held["first.weight"][mask], expected["first.weight"][mask])
    assert not net.first.weight.grad[~mask].any()
    net.zero_grad(set_to_none=True)  # breaks the cycle of weights and graph
