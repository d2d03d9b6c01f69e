"""The tensors of a model that are masked, by name: masks, values kept aside, gradients waited for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.common.errors import CheckpointError, ConfigError
from sparsedet.common.processes import num_processes
from sparsedet.sparsity.distributed import (
    check_equal,
    is_sharded,
    leave_to_first_process_,
    own_part,
    shard_like,
    sum_over_processes_,
    whole,
)
from sparsedet.sparsity.followers import Follower, named_tensors
from sparsedet.sparsity.masks import Mask, merge_
from sparsedet.sparsity.optimizers import clear_state_
from sparsedet.sparsity.weights import Weight, find_weights


class MaskedTensors:
    """What is pruned in the weights of a model, and in what follows their channels.

    Args:
        weights: those that are chosen, by full name.
        followers: what is zeroed with dead channels, by full name.
        keep_pruned_values: whether the values of pruned weights are kept aside.

    Attributes:
        weights: as given.
        followers: as given.
        masks: mask of each weight and follower; empty before the first pruning.
        pruned_values: by name, the values of pruned weights, +0.0 at kept ones; empty if they are not kept.
        gradients: by name, the whole gradient of a step, pruned entries included; filled while `collects`.
        collects: whether the gradients of this step are wanted.
    """

    def __init__(
        self, weights: Mapping[str, Weight], followers: Mapping[str, Follower], keep_pruned_values: bool
    ) -> None:
        self.weights = weights
        self.followers = followers
        self.masks: dict[str, Mask] = {}
        self.pruned_values: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.collects = False
        self.keeps_values = keep_pruned_values
        self._cut: set[str] = set()  # of these, values were loaded that the masks then zeroed

    def tensor(self, name: str) -> Tensor:
        """Return the weight or the follower of that name as it is held now."""
        return (self.weights.get(name) or self.followers[name]).tensor

    def modules(self, name: str) -> tuple[nn.Module, ...]:
        """Return the modules that hold it."""
        return self.weights[name].modules if name in self.weights else (self.followers[name].module,)

    @property
    def keeps(self) -> dict[str, Tensor]:
        """Bool mask of each weight, True = keep."""
        return {name: mask.keep for name, mask in self.masks.items() if name in self.weights}

    def set_(self, keeps: Mapping[str, Tensor]) -> dict[str, Mask]:
        """Take over new masks and put zeros where they say so.

        Args:
            keeps: bool mask of each weight, True = keep.

        Returns:
            The masks until now.

        Raises:
            SparseDetError: the masks differ between processes.
        """
        new = {name: Mask.of(keep) for name, keep in keeps.items()}
        _check_ranks(new)
        new |= {name: Mask.of(follower.keep(keeps)) for name, follower in self.followers.items()}
        old, self.masks = self.masks, new
        self._cut.clear()
        if self.keeps_values:
            self.hold_()
        self.apply_()
        return old

    def unchanged(self, old: Mapping[str, Mask]) -> dict[str, Mask]:
        """Return for each tensor where its mask is as in `old`; where there is none, everything was kept."""
        return {
            name: Mask.of(mask.keep == old[name].keep.to(mask.bits.device)) if name in old else mask
            for name, mask in self.masks.items()
        }

    def check_ranks(self) -> None:
        """Compare the masks with those of the other processes; see `check_equal`."""
        _check_ranks({name: mask for name, mask in self.masks.items() if name in self.weights})

    def apply_(self, model: nn.Module | None = None) -> None:
        """Set every pruned entry to +0.0, here or in another model with the same names.

        Raises:
            ConfigError: the other model has other names or shapes; nothing has changed.
        """
        if model is None:
            for name, mask in self.masks.items():
                mask.apply_(self.tensor(name))
            return
        others = {weight.name: weight.tensor for weight in find_weights(model)}
        if self.followers:
            others = named_tensors(model) | others
        for name, mask in self.masks.items():
            if name not in others or others[name].shape != mask.bits.shape:
                got = f"the shape {tuple(others[name].shape)}" if name in others else "none"
                raise ConfigError(
                    f"model: expected a weight '{name}' of shape {tuple(mask.bits.shape)} as in the pruned model, got "
                    f"{got}. Pass a copy of that model, and not an object around it that adds to the names."
                )
        for name, mask in self.masks.items():
            mask.apply_(others[name])

    def apply_after_step_(self) -> None:
        """Do what `apply_` does for weights whose pruned entries are zero, unless the optimizer has just moved them.

        Autograd does not see it, so that it can still go back through weights that other optimizers train.
        """
        for name, mask in self.masks.items():
            tensor = self.tensor(name)
            mask.apply_(tensor if is_sharded(tensor) else tensor.data)

    def apply_after_loading_(self, name: str) -> None:
        """Set the pruned entries of one tensor to +0.0, and remember whether that changed anything."""
        if name not in self.masks:
            return
        rest = own_part(self.tensor(name)).clone()
        self.masks[name].apply_(self.tensor(name))
        if not torch.equal(rest, own_part(self.tensor(name))):
            self._cut.add(name)

    @torch.no_grad()
    def hold_(self) -> None:
        """Keep the values of pruned weights aside, as they stand in the weights now."""
        for name in self.weights if self.masks else ():  # in the same order in every process
            self.pruned_values[name] = self.tensor(name).detach().clone()
            self.masks[name].clear_kept_(self.pruned_values[name])

    @torch.no_grad()
    def restore_(self) -> None:
        """Put the values that are kept aside back into the weights, which are dense until `apply_`."""
        for name, values in self.pruned_values.items():
            self.masks[name].apply_(self.tensor(name))
            merge_(self.tensor(name), values)

    def take_gradient_(self, name: str, gradient: Tensor) -> None:
        """Zero the pruned entries of a gradient as soon as it is there; keep them apart if they are wanted.

        Kept entries of `gradient` are the sum over the passes of a step, pruned ones of the last pass alone.
        """
        mask = self.masks.get(name)
        if mask is None:
            return
        if self.collects and name in self.weights:
            if name in self.gradients:
                mask.clear_kept_(self.gradients[name])
                self.gradients[name] += gradient.detach()
            else:
                self.gradients[name] = gradient.detach().clone()
        mask.apply_(gradient)

    def whole_gradient(self, name: str) -> Tensor:
        """Return the gradient of all processes for a weight, each of which has to ask; a frozen one has zeros."""
        gradient = self.gradients.get(name)
        gradient = torch.zeros_like(self.tensor(name)) if gradient is None else gradient
        if num_processes() > 1:
            gradient = gradient.clone()
            sum_over_processes_(gradient)
        return whole(gradient)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Have the weights hold the values of pruned ones meanwhile, if these are kept."""
        if not self.pruned_values:
            yield
            return
        self.restore_()
        try:
            yield
        finally:
            self.apply_()

    def clear_state_(self, optimizer: torch.optim.Optimizer, places: Mapping[str, Mask]) -> None:
        """Zero momentum and the like except where `places` say that it stays."""
        clear_state_(optimizer, [(self.tensor(name), mask) for name, mask in places.items()])

    def state_dict(self) -> dict[str, Any]:
        """Return masks and, where they are needed to go on, pruned values and gradients (not copies).

        Gradients are the sum over all processes, each of which has to call this, as with sharded weights.
        """
        state: dict[str, Any] = {"masks": self.keeps}
        if self.pruned_values:
            state["pruned_values"] = {name: whole(values) for name, values in self.pruned_values.items()}
        if self.gradients:
            state["gradients"] = {name: self.whole_gradient(name) for name in self.weights}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, and put zeros where the masks say so.

        Raises:
            CheckpointError: the masks are of other weights, or there are none.
        """
        if "masks" not in state:
            raise CheckpointError(
                f"masks: expected the state of a sparsifier, got {sorted(state) or 'nothing'}. "
                "Load what its state_dict() returned."
            )
        expected = {name: tuple(weight.tensor.shape) for name, weight in self.weights.items()}
        found = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        if found and found != expected:
            name = min(key for key in {*expected, *found} if expected.get(key) != found.get(key))
            raise CheckpointError(
                f"masks: expected masks of the chosen weights, got another shape or choice at '{name}': "
                f"{found.get(name, 'none')} instead of {expected.get(name, 'none')}. "
                "Use the model and the sparsity block that the checkpoint was made with."
            )
        for name in self._cut & found.keys():
            if (state["masks"][name] & ~self.masks[name].keep.to(state["masks"][name].device)).any():
                raise CheckpointError(
                    f"masks: expected to be loaded before the weights, got weights of '{name}' that the masks in use "
                    "have pruned meanwhile. Load the state of the sparsifier first, then that of the model."
                )
        self._cut.clear()
        self.masks = {name: Mask.of(keep) for name, keep in state["masks"].items()}
        keeps = self.keeps
        self.masks |= {name: Mask.of(follower.keep(keeps)) for name, follower in self.followers.items() if keeps}
        self.pruned_values, self.gradients = (
            {name: shard_like(value, self.tensor(name)) for name, value in state.get(key, {}).items()}
            for key in ("pruned_values", "gradients")
        )
        for gradient in self.gradients.values():
            leave_to_first_process_(gradient)
        self.apply_()


def _check_ranks(masks: Mapping[str, Mask]) -> None:
    if num_processes() > 1:  # a checksum takes as long as a mask
        check_equal({name: mask.checksum for name, mask in masks.items()})
