"""Where the channels of a network go: one forward pass is watched, operation by operation.

Every position of every dimension of every parameter and buffer is a channel with a number. The operations of the pass
(`sparsedet.sparsity.permutation.rules`) carry the numbers on: a convolution reads input channels and makes those of its
weight's output dimension, a sum ties channels together, a concatenation joins rows of numbers, a slice cuts them.
Channels that an operation reads for which there is no rule are *pinned*: they stay where they are. Nothing is traced:
the model runs as it always does, with whatever Python does, and operations are seen as PyTorch dispatches them.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

Ids = NDArray[np.int64]

Labels = list[Ids | None]
"""For each dimension of a tensor the channel at every position; None: not followed, or of size 1."""

Rule = Callable[["Flow", Mapping[str, Any], Sequence[Tensor]], list[Labels] | str]
"""Returns the labels of the first outputs of an operation, given its arguments by name and its outputs; or what the
operation is, if its channels cannot be followed."""

_DECISIONS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Flow(TorchDispatchMode):
    """Labels of the tensors of a running model, and what is known about channels.

    Args:
        tensors: parameters and buffers by name.
        find_rule: returns the rule for an operation; None: there is none.

    Attributes:
        sites: channels of each dimension of each parameter and buffer.
        seen: names of the parameters and buffers that an operation read.
        strides: of the first tensor that an operation reads, before it runs.
    """

    def __init__(self, tensors: Mapping[str, Tensor], find_rule: Callable[[Any], Rule | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self.sites: dict[tuple[str, int], Ids] = {}
        self.seen: set[str] = set()
        self.strides: tuple[int, ...] = ()
        self._find_rule = find_rule
        self._operation = ""
        self._decided = ""
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._labels: MutableMapping[Tensor, Labels] = WeakTensorKeyDictionary()
        self._live: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self._ties: list[tuple[Ids, Ids]] = []
        self._pins: list[tuple[Ids, str]] = []
        self._parts: list[Ids] = []
        self._size = 0
        for name, tensor in tensors.items():
            self._labels[tensor] = self._new_labels(tensor.shape)
            self.sites |= {(name, dim): ids for dim, ids in enumerate(self._labels[tensor]) if ids is not None}
        self._num_of_model = self._size

    # --- for rules ------------------------------------------------------------------------------------------

    def of(self, tensor: Tensor) -> Labels:
        """Return the labels of `tensor`, one for each dimension."""
        return self._labels[tensor] if tensor in self._labels else [None] * tensor.ndim

    def pin(self, labels: Iterable[Ids | None], reason: str = "") -> None:
        """Let the channels stay where they are; default reason: the operation is not followed."""
        reason = reason or f"goes through {self._operation}, which is not followed"
        self._pins.extend((ids, reason) for ids in labels if ids is not None)

    def is_live(self, tensor: Tensor) -> bool:
        """Tell whether `tensor` was made from the inputs of the network."""
        return tensor in self._live

    def new(self, size: int) -> Ids:
        """Return numbers that no channel has yet."""
        self._size += size
        return np.arange(self._size - size, self._size)

    def pinned(self, sizes: Iterable[int], reason: str = "") -> Labels:
        """Return labels of new channels, which stay where they are."""
        labels = self._new_labels(sizes)
        self.pin(labels, reason)
        return labels

    def tie(self, labels: Sequence[Ids | None]) -> Ids | None:
        """Make channels one where they meet, position by position, and return them.

        Where one is not followed, the others are pinned.
        """
        known = [ids for ids in labels if ids is not None]
        if len(known) < len(labels):
            self.pin(known, f"meets values in {self._operation} that are not followed")
        self._ties.extend((known[0], ids) for ids in known[1:])
        return known[0] if known else None

    def part(self, ids: Ids | None, where: slice) -> Ids | None:
        """Return some of the channels of a dimension, and remember that they are told apart from the others."""
        if ids is None:
            return None
        part = ids[where]
        if len(part) < len(ids):
            self._parts.append(part)
        return part if len(part) > 1 else None

    # --- the pass -------------------------------------------------------------------------------------------

    def enter(self, tensors: Iterable[Tensor]) -> None:
        """Let the dimensions of the network's inputs stay as they are."""
        for tensor in tensors:
            self._labels[tensor] = self.pinned(tensor.shape, "is an input of the network")
            self._live[tensor] = True

    def leave(self, tensors: Iterable[Tensor]) -> None:
        """Let the dimensions of the network's outputs stay as they are."""
        for tensor in tensors:
            self.pin(self.of(tensor), "is an output of the network")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and label what it returns."""
        inputs = _tensors((args, kwargs))
        self.strides = inputs[0].stride() if inputs else ()
        output = func(*args, **(kwargs or {}))
        if any(tensor in self._labels for tensor in inputs):
            self.seen.update(self._names[id(tensor)] for tensor in inputs if id(tensor) in self._names)
            self._operation = func._schema.name
            self._follow(func, args, kwargs or {}, inputs, _tensors(output))
        return output

    def _follow(
        self, func: Any, args: Any, kwargs: Mapping[str, Any], inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
        arguments = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
        rule = self._find_rule(func)
        followed = f"{self._operation}, which is not followed" if rule is None else rule(self, arguments, outputs)
        is_live = any(map(self.is_live, inputs))
        labels: list[Labels] = []
        if isinstance(followed, str):
            for tensor in inputs:
                self.pin(self.of(tensor), f"goes through {followed}")
            if is_live and _DECISIONS.intersection(func.tags):
                self._decide()
        else:
            labels = followed
        labels += [self.pinned(tensor.shape, f"goes through {followed}") for tensor in outputs[len(labels) :]]
        for tensor, its_labels in zip(outputs, labels, strict=True):
            self._labels[tensor] = its_labels
            if is_live:
                self._live[tensor] = True
        if self._decided:
            for tensor in (*inputs, *outputs):
                self.pin(self.of(tensor), self._decided)

    def _decide(self) -> None:
        """Pin what is there: Python sees a value of the network, and may do other things with it next time."""
        self._decided = f"is there when the network's values are looked at ({self._operation}), or comes after it"
        for tensor in list(self._labels):
            if id(tensor) not in self._names:
                self.pin(self.of(tensor), self._decided)

    def _new_labels(self, sizes: Iterable[int]) -> Labels:
        return [self.new(size) if size > 1 else None for size in sizes]

    def classes(self) -> tuple[Ids, dict[int, str], list[Ids]]:
        """Return what the pass has shown.

        Returns:
            The class of every channel (tied channels are one class, named by its smallest number); of the pinned
            classes of parameters and buffers the first reason; and the classes in every part.
        """
        classes = _connected(self._size, self._ties)
        first_pin = np.full(self._size, len(self._pins))
        for index, (ids, _) in reversed(list(enumerate(self._pins))):
            first_pin[classes[ids]] = index
        (names,) = np.nonzero(first_pin[: self._num_of_model] < len(self._pins))
        pinned = {name: self._pins[first_pin[name]][1] for name in names.tolist()}
        return classes, pinned, [np.unique(classes[ids]) for ids in self._parts]


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _connected(size: int, ties: Sequence[tuple[Ids, Ids]]) -> Ids:
    """Return the smallest number in the connected component of each of `size` nodes."""
    smallest = np.arange(size)
    if not ties:
        return smallest
    one, other = (np.concatenate([tie[side] for tie in ties]) for side in (0, 1))
    while True:
        ours, theirs = smallest[one], smallest[other]
        if np.array_equal(ours, theirs):
            return smallest
        lower = np.minimum(ours, theirs)
        np.minimum.at(smallest, ours, lower)
        np.minimum.at(smallest, theirs, lower)
        while not np.array_equal(smallest, smallest[smallest]):
            smallest = smallest[smallest]
