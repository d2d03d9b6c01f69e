"""Where the channels of a network go: one forward pass is watched, operation by operation.

Every position of every dimension of every parameter and buffer is a channel with a number. The operations of the pass
(`sparsedet.sparsity.permutation.rules`) carry the numbers on: a convolution reads input channels and makes those of its
weight's output dimension, a sum ties channels together, a concatenation joins rows of numbers, a slice cuts them. What
an operation does with channels that no rule describes *pins* them: they stay where they are. Nothing is traced: the
model runs as it always does, with whatever Python does, and operations are seen as PyTorch dispatches them.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

Ids = NDArray[np.int64]

Labels = list[Ids | None]
"""For each dimension of a tensor the channel at every position; None: not followed, or of size 1."""

Rule = Callable[["Flow", Mapping[str, Any], Any], None]
"""Gives the outputs of an operation their labels; arguments by name, and what the operation returned."""


class Flow(TorchDispatchMode):
    """Labels of the tensors of a running model, and what is known about channels.

    Args:
        tensors: parameters and buffers by name.
        rule: returns the rule for an operation; None: there is none.
    """

    def __init__(self, tensors: Mapping[str, Tensor], rule: Callable[[Any], Rule | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types
        self.sites: dict[tuple[str, int], Ids] = {}
        """Channels of each dimension of each parameter and buffer."""
        self.seen: set[str] = set()
        """Parameters and buffers that an operation read."""
        self.before: Any = None
        """Strides of the first argument before the operation."""
        self._rule = rule
        self.operation = ""
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._labels: MutableMapping[Tensor, Labels] = WeakTensorKeyDictionary()
        self._ties: list[tuple[Ids, Ids]] = []
        self._pins: list[tuple[Ids, str]] = []
        self._parts: list[Ids] = []
        self._size = 0
        for name, tensor in tensors.items():
            labels: Labels = [self.new(size) if size > 1 else None for size in tensor.shape]
            self._labels[tensor] = labels
            self.sites |= {(name, dim): ids for dim, ids in enumerate(labels) if ids is not None}

    # --- for rules ------------------------------------------------------------------------------------------

    def new(self, size: int) -> Ids:
        """Return numbers that no channel has yet."""
        self._size += size
        return np.arange(self._size - size, self._size)

    def of(self, tensor: Tensor) -> Labels:
        """Return the labels of `tensor`, one for each dimension."""
        return self._labels[tensor] if tensor in self._labels else [None] * tensor.ndim

    def put(self, tensor: Tensor, labels: Labels) -> None:
        """Give `tensor` its labels."""
        self._labels[tensor] = labels

    def pin(self, labels: Iterable[Ids | None], reason: str | None = None) -> None:
        """Let the channels stay where they are; default reason: the operation."""
        why = reason or f"goes through {self.operation}, which is not followed"
        self._pins.extend((ids, why) for ids in labels if ids is not None)

    def put_pinned(self, tensor: Tensor, reason: str | None = None) -> None:
        """Give `tensor` new channels, which stay where they are."""
        self.put(tensor, [self.new_pinned(size, reason) for size in tensor.shape])

    def new_pinned(self, size: int, reason: str | None = None) -> Ids | None:
        """Return new channels, which stay where they are."""
        ids = self.new(size) if size > 1 else None
        self.pin([ids], reason)
        return ids

    def tie(self, labels: Sequence[Ids | None]) -> Ids | None:
        """Make channels one where they meet, position by position, and return them.

        Where one is not followed, the others are pinned.
        """
        known = [ids for ids in labels if ids is not None]
        if len(known) < len(labels):
            self.pin(known, f"meets values in {self.operation} that are not followed")
        self._ties.extend((known[0], ids) for ids in known[1:])
        return known[0] if known else None

    def part(self, ids: Ids) -> None:
        """Remember that an operation tells these channels apart from others beside them."""
        self._parts.append(ids)

    # --- the pass -------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and label what it returns."""
        kwargs = kwargs or {}
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self.seen.update(self._names[id(tensor)] for tensor in inputs if id(tensor) in self._names)
        self.before = inputs[0].stride() if inputs else None
        output = func(*args, **kwargs)
        self.operation = func._schema.name
        rule = self._rule(func)
        if rule is None:
            labels = [ids for tensor in inputs for ids in self.of(tensor) if ids is not None]
            self.pin(labels)
            for value in tree_leaves(output):
                if isinstance(value, Tensor):
                    if labels:
                        self.put_pinned(value)
                    else:
                        self.put(value, [None] * value.ndim)
        else:
            names = [argument.name for argument in func._schema.arguments]
            defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
            rule(self, {**defaults, **dict(zip(names, args, strict=False)), **kwargs}, output)
        return output

    def classes(self) -> tuple[Ids, dict[int, str], list[Ids]]:
        """Return what the pass has shown.

        Returns:
            The class of every channel (tied channels are one class, named by its smallest number); of the pinned
            classes the first reason; and the classes in every part.
        """
        classes = _connected(self._size, self._ties)
        pinned: dict[int, str] = {}
        for ids, reason in self._pins:
            for name in np.unique(classes[ids]).tolist():
                pinned.setdefault(name, reason)
        return classes, pinned, [np.unique(classes[ids]) for ids in self._parts]


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
