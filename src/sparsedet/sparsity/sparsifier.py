"""The sparsifier: masks beside a model, exact zeros in its weights, whatever optimizer trains it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsedet.common.errors import CheckpointError, ConfigError
from sparsedet.sparsity.allocation.selection import not_finite
from sparsedet.sparsity.budget import Budget
from sparsedet.sparsity.config import SparsityConfig
from sparsedet.sparsity.followers import DeadChannels, Follower, count_dead_channels, find_followers, named_tensors
from sparsedet.sparsity.masks import Mask
from sparsedet.sparsity.measure import Measurement, measure
from sparsedet.sparsity.predictions import find_predictions
from sparsedet.sparsity.profile import profile_model
from sparsedet.sparsity.weights import Weight, find_weights, unwrap


class Sparsifier:
    """Prunes a model by a schedule and keeps it pruned.

    The model stays what it was: no layer is swapped, `state_dict` keys do not change, and copies of the model
    hold the zeros. The masks of a level contain those of earlier levels, and stay fixed until the next level.

    Args:
        model: any module; wrappers (DDP, torch.compile) are seen through.
        config: what to prune, how much, when.
        example_inputs: positional arguments of the model's forward, for MACs and stride groups; default one
            zero tensor of ``config.input_shape``, if that is given.
        run: called with them in the place of the forward, for models whose forward leaves layers out.

    Attributes:
        config: as given.
        selection: one row for each conv and linear weight: chosen or not, and why.
        profile: MACs and input sizes; None without example inputs.
        level: level of the current masks; None before the first.

    Raises:
        TargetMatchError: a pattern of the targets matches no weight, or none is chosen.
        UnsupportedShapeError: a weight named exactly cannot be served by the pattern.
        UnreachableTargetError: a target cannot be met with the chosen weights.
        ConfigError: something needs example inputs and there are none, or the model cannot run on them.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.5, 0.9))))
        >>> sparsifier.attach(optimizer)
        >>> for step in range(20):
        ...     _ = sparsifier.before_step(step, total_steps=20)
        ...     optimizer.zero_grad()
        ...     model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> round(sparsifier.measure().measured_sparsity, 3)
        0.9
    """

    def __init__(
        self,
        model: nn.Module,
        config: SparsityConfig,
        example_inputs: tuple[Any, ...] | None = None,
        run: Callable[..., object] | None = None,
    ) -> None:
        self.config = config
        self.level: int | None = None
        self._model = unwrap(model)
        weights = find_weights(self._model)
        example_inputs = self._example_inputs(example_inputs)
        self.profile = None if example_inputs is None else profile_model(self._model, example_inputs, run)
        predictions = None
        if example_inputs is not None and config.needs_predictions:
            predictions = find_predictions(self._model, example_inputs, run)
        self.selection = config.targets.select(weights, config.pattern, predictions)
        rows = zip(weights, self.selection, strict=True)
        self._chosen: dict[str, Weight] = {weight.name: weight for weight, row in rows if row.chosen}
        self._followers: dict[str, Follower] = {}
        if example_inputs is not None and config.pattern.kills_channels:
            found = find_followers(self._model, self._chosen, example_inputs, run)
            self._followers = {follower.name: follower for follower in found}
        self._masks: dict[str, Mask] = {}
        self._step_hooks: WeakKeyDictionary[torch.optim.Optimizer, RemovableHandle] = WeakKeyDictionary()
        self._gradient_hooks: dict[str, RemovableHandle] = {}
        self._budget: Budget | None = None
        if config.allocation is not None:
            self._budget = Budget(config, config.allocation, weights, self.selection, self.profile, predictions)

    # --- schedule -------------------------------------------------------------------------------------------

    @property
    def target_sparsities(self) -> tuple[float, ...]:
        """Target of each level."""
        fixed = self.config.pattern.fixed_sparsity
        targets = (fixed if fixed is not None else target for target in self.config.schedule.target_sparsities)
        return tuple(target for target in targets if target is not None)

    def boundaries(self, total_steps: int) -> tuple[int, ...]:
        """Return the first step of each level."""
        return self.config.schedule.boundaries(total_steps)

    def before_step(self, step: int, total_steps: int) -> bool:
        """Prune if `step` has reached a new level; call it before the forward pass of every step.

        Returns:
            Whether new masks were made.
        """
        level = sum(start <= step for start in self.boundaries(total_steps)) - 1
        if self.level is not None and self.level >= level:
            return False
        self.prune_(level)
        return True

    # --- masks ----------------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str, Tensor]:
        """Bool mask by full name of the weight, True = keep; empty before the first level. Read only."""
        return {name: mask.keep for name, mask in self._masks.items() if name in self._chosen}

    def allocate(self, level: int) -> dict[str, float]:
        """Return the sparsity that each chosen weight would get at `level`; nothing changes."""
        return self.allocate_levels([level])[0]

    def allocate_levels(self, levels: Sequence[int] | None = None) -> list[dict[str, float]]:
        """Return `allocate` of several levels (default all) for little more than the cost of one."""
        every_level = range(len(self.target_sparsities)) if levels is None else levels
        sizes = [weight.tensor.numel() for weight in self._chosen.values()]
        return [
            {name: count / size for name, count, size in zip(self._chosen, counts, sizes, strict=True)}
            for counts in self._counts(every_level)
        ]

    @torch.no_grad()
    def prune_(self, level: int) -> None:
        """Make the masks of `level`, zero the weights, and clear the optimizers' state at pruned entries.

        Raises:
            ConfigError: there is no such level, or the masks are of a later one already.
            SparseDetError: a weight is NaN or infinite.
        """
        last = len(self.target_sparsities) - 1
        if not (self.level or 0) <= level <= last:
            raise ConfigError(
                f"level: expected {self.level or 0} (pruned so far) to {last} (the last), got {level}. "
                "To go back, start from an earlier checkpoint."
            )
        if level != self.level:
            (counts,) = self._counts([level])
            for (name, weight), count in zip(self._chosen.items(), counts, strict=True):
                scores = self._scores(weight)
                if name in self._masks:  # what is pruned goes first again
                    scores = torch.where(self._masks[name].keep.to(scores.device), scores, -1.0)
                self._masks[name] = Mask.of(self.config.pattern.mask(scores, count))
            self.level = level
            self._mask_followers()
        self.apply_()
        for optimizer in self._step_hooks:
            self._clear_state_(optimizer)

    def apply_(self, model: nn.Module | None = None) -> None:
        """Set every pruned weight to +0.0, whatever stands there.

        Args:
            model: another module with the same parameter names, such as an averaged copy; default the pruned
                model.
        """
        if model is None:
            for name, mask in self._masks.items():
                mask.apply_(self._tensor(name))
            return
        others = {weight.name: weight.tensor for weight in find_weights(model)}
        if self._followers:
            others = named_tensors(model) | others
        for name, mask in self._masks.items():
            mask.apply_(others[name])

    def measure(self, model: nn.Module | None = None) -> Measurement:
        """Count the zeros that are in the weights now.

        Args:
            model: another module with the same parameter names, such as an averaged copy; default the pruned
                model.
        """
        reasons = {row.name: row.reason for row in self.selection}
        return measure(self._model if model is None else model, self._chosen, self.profile, reasons)

    def dead_channels(self) -> tuple[DeadChannels, ...]:
        """Count the filters of the chosen weights that are zero now, and say what goes with them."""
        return count_dead_channels(self._chosen.values(), self._followers.values())

    # --- training -------------------------------------------------------------------------------------------

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the model pruned while `optimizer` trains it; call it again for every new optimizer.

        After each of its steps pruned weights are set to +0.0. Gradients of pruned weights are set to zero as
        soon as they are there, so that clipping does not count them.

        Raises:
            ConfigError: the optimizer holds none of the chosen weights.
        """
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(weight.tensor) in held for weight in self._chosen.values()):
            raise ConfigError(
                f"optimizer: expected an optimizer of the pruned model, got one that holds none of its "
                f"{len(self._chosen)} chosen weights. Build it from the parameters of the same model."
            )
        if optimizer not in self._step_hooks:
            self._step_hooks[optimizer] = optimizer.register_step_post_hook(lambda *_: self.apply_())
        for name in (*self._chosen, *self._followers):
            tensor = self._tensor(name)
            if name not in self._gradient_hooks and tensor.requires_grad:
                hook = self._gradient_hook(name)
                register = tensor.register_post_accumulate_grad_hook
                self._gradient_hooks[name] = register(hook)  # type: ignore[no-untyped-call]  # torch has no types
        self._clear_state_(optimizer)

    def detach(self) -> None:
        """Undo every `attach`; the weights stay as they are."""
        for handle in (*self._step_hooks.values(), *self._gradient_hooks.values()):
            handle.remove()
        self._step_hooks.clear()
        self._gradient_hooks.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return level and masks as plain containers and bool tensors (not copies)."""
        return {"level": self.level, "masks": self.masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over level and masks, and zero the weights by them.

        Raises:
            CheckpointError: the masks are of other weights than the chosen ones.
        """
        expected = {name: tuple(weight.tensor.shape) for name, weight in self._chosen.items()}
        found = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        if state["level"] is not None and found != expected:
            name = min(key for key in {*expected, *found} if expected.get(key) != found.get(key))
            raise CheckpointError(
                f"masks: expected masks of the chosen weights, got another shape or choice at '{name}': "
                f"{found.get(name, 'none')} instead of {expected.get(name, 'none')}. "
                "Use the model and the sparsity block that the checkpoint was made with."
            )
        self.level = state["level"]
        self._masks = {name: Mask.of(keep.clone()) for name, keep in state["masks"].items()}
        self._mask_followers()
        self.apply_()

    # --- parts ----------------------------------------------------------------------------------------------

    def _example_inputs(self, given: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if given is None and self.config.input_shape is not None:
            return (next(self._model.parameters()).new_zeros(self.config.input_shape),)
        if given is None and self.config.needs_profile is not None:
            raise ConfigError(
                f"sparsity.input_shape: expected the shape of an input, which {self.config.needs_profile} needs, "
                "got null. Write for example input_shape: [1, 3, 800, 1333], or pass example_inputs."
            )
        return given

    @torch.no_grad()
    def _scores(self, weight: Weight) -> Tensor:
        return self.config.criterion.scores(weight.tensor).cpu().contiguous()

    def _counts(self, levels: Sequence[int]) -> list[list[int]]:
        """Return the number of zeros of each chosen weight, for each of `levels`."""
        if self._budget is None:
            fixed = self.config.pattern.fixed_sparsity
            for name, weight in self._chosen.items():
                if not weight.tensor.isfinite().all():
                    raise not_finite(name)
            return [[round(weight.tensor.numel() * (fixed or 0)) for weight in self._chosen.values()] for _ in levels]
        num_pruned = {name: mask.keep.numel() - int(mask.keep.count_nonzero()) for name, mask in self._masks.items()}
        targets = [self.target_sparsities[level] for level in levels]
        return self._budget.counts(targets, self._scores_of_kept, num_pruned)

    def _scores_of_kept(self, weight: Weight) -> NDArray[np.float32]:
        """Return the scores of all entries, flat; 0 where pruned."""
        scores = self._scores(weight)
        if weight.name in self._chosen:
            scores = self.config.pattern.pooled(scores)
        if weight.name in self._masks:
            self._masks[weight.name].apply_(scores)
        return scores.numpy().reshape(-1)

    def _tensor(self, name: str) -> Tensor:
        """Return the weight or the follower of that name as it is held now."""
        return (self._chosen.get(name) or self._followers[name]).tensor

    def _mask_followers(self) -> None:
        if self._masks:
            self._masks |= {name: Mask.of(follower.keep(self.masks)) for name, follower in self._followers.items()}

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        def zero_pruned_gradient(parameter: Tensor) -> None:
            if name in self._masks and parameter.grad is not None:
                self._masks[name].apply_(parameter.grad)

        return zero_pruned_gradient

    def _clear_state_(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero momentum and the like at pruned entries, so that they do not act if a weight comes back."""
        for name, mask in self._masks.items():
            parameter = self._tensor(name)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                    mask.apply_(value)
