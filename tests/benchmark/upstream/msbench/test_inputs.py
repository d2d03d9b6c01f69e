import torch
from torch import nn

from sparsedet.benchmark.upstream.msbench.inputs import positional

ONE, TWO = torch.ones(1), torch.full((1,), 2.0)


class Takes(nn.Module):
    """Stands for a model that takes a number of arguments."""


class One(Takes):
    def forward(self, batch):
        return batch


class Two(Takes):
    def forward(self, image, scale=None):
        return image


class Named(Takes):
    def forward(self, *, image):
        return image


def test_the_only_argument():
    assert positional(One(), ONE) == (ONE,)
    assert positional(One(), [ONE, TWO]) == ([ONE, TWO],)


def test_a_tuple_holds_the_arguments_if_there_are_as_many():
    assert positional(One(), (ONE,)) == (ONE,)
    assert positional(One(), (ONE, TWO)) == ((ONE, TWO),)
    assert positional(Two(), (ONE, TWO)) == (ONE, TWO)


def test_a_dict_holds_the_arguments_if_these_have_its_names():
    assert positional(Two(), {"scale": TWO, "image": ONE}) == (ONE, TWO)
    assert positional(Two(), {"image": ONE}) == (ONE, None)
    assert positional(One(), {"image": ONE, "label": TWO}) == ({"image": ONE, "label": TWO},)
    assert positional(Named(), {"image": ONE}) == ({"image": ONE},)


def test_tensors_go_to_the_device_of_the_model():
    model = One()
    model.weight = nn.Parameter(torch.ones(1, device="meta"))
    (batch,) = positional(model, {"image": ONE, "more": [(ONE,)], "name": "a"})
    assert batch["image"].device.type == batch["more"][0][0].device.type == "meta"
    assert batch["name"] == "a"
    assert ONE.device.type == "cpu"
