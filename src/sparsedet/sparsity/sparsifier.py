"""The sparsifier: masks beside a model, exact zeros in its weights, whatever optimizer trains it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.common.errors import ConfigError, UnreachableTargetError
from sparsedet.sparsity.budget import Budget
from sparsedet.sparsity.calibration import Calibration
from sparsedet.sparsity.config import ZEROS_ANYWHERE, SparsityConfig
from sparsedet.sparsity.distributed import reshard, whole
from sparsedet.sparsity.followers import DeadChannels, Follower, count_dead_channels, find_followers
from sparsedet.sparsity.hooks import Hooks
from sparsedet.sparsity.mask_maker import MaskMaker
from sparsedet.sparsity.masked import MaskedTensors
from sparsedet.sparsity.measure import Measurement, measure
from sparsedet.sparsity.optimizers import stepping
from sparsedet.sparsity.patterns import NM
from sparsedet.sparsity.permutation import PermutationReport, check_fresh, permute_channels
from sparsedet.sparsity.predictions import find_predictions
from sparsedet.sparsity.profile import profile_model
from sparsedet.sparsity.schedules import Change, whole_number
from sparsedet.sparsity.weights import Weight, find_weights, unwrap


class Sparsifier:
    """Prunes a model by a schedule and keeps it pruned.

    The model stays what it was: no layer is swapped, `state_dict` keys do not change, and copies of the model
    hold the zeros. The zeros of a level are among those of later levels, and stay fixed until the next level,
    unless the schedule or `SparsityConfig.keep_pruned_values` says otherwise.

    Args:
        model: any module; wrappers (DDP, torch.compile) are seen through.
        config: what to prune, how much, when.
        example_inputs: positional arguments of the model's forward, for MACs and stride groups; default one
            zero tensor of ``config.input_shape``, if that is given.
        run: called with them in the place of the forward, for models whose forward leaves layers out.
        calibration: data for a criterion that looks at some, which it does whenever masks are made.

    Attributes:
        config: as given.
        selection: one row for each conv and linear weight: chosen or not, and why.
        profile: MACs and input sizes; None without example inputs.
        level: level of the current masks; None before the first.
        target_sparsity: what the current masks were made for; within a level the cubic schedule asks for less than at
            its end. None before the first.

    Raises:
        TargetMatchError: a pattern of the targets matches no weight, or none is chosen.
        UnsupportedShapeError: a weight named exactly cannot be served by the pattern.
        UnreachableTargetError: a target cannot be met with the chosen weights.
        ConfigError: something needs example inputs or calibration data and there are none, or the model cannot run
            on them.

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
        calibration: Calibration | None = None,
    ) -> None:
        self.config = config
        self.level: int | None = None
        self.target_sparsity: float | None = None
        self._updated_at: int | None = None
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
        config.criterion.check(tuple(self._chosen.values()), calibration)
        self._followers: dict[str, Follower] = {}
        if example_inputs is not None and config.pattern.kills_channels:
            found = find_followers(self._model, self._chosen, example_inputs, run)
            self._followers = {follower.name: follower for follower in found}
        self._masked = MaskedTensors(self._chosen, self._followers, config.keep_pruned_values)
        self._hooks = Hooks(self._masked)
        self._permute: Callable[[], PermutationReport] | None = None
        if example_inputs is not None and isinstance(config.pattern, NM) and config.pattern.permute:
            self._permute = partial(permute_channels, self._model, example_inputs, config.pattern, run, self._chosen)
        budget = None
        if config.allocation is not None:
            budget = Budget(config, config.allocation, weights, self.selection, self.profile, predictions)
        scored = tuple(self._chosen.values()) if budget is None else budget.scored
        self._maker = MaskMaker(config, self._model, scored, self._masked, budget, calibration)

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
        """Prune if `step` has reached a new level or another change; call it before the forward pass of every step.

        Args:
            step: 0-based.
            total_steps: steps of the run.

        Returns:
            Whether new masks were made.

        Raises:
            ConfigError: a number is none or too small, or weights are to grow and no optimizer is attached.
        """
        step, total_steps = whole_number("step", step, 0), whole_number("total_steps", total_steps, 1)
        if self._hooks.has_thawed():
            reshard(self._model)
            self._hooks.watch_gradients()
        schedule, interval = self.config.schedule, self.config.update_interval
        change = schedule.change(step, total_steps, interval)
        is_new = False
        if self._is_due(change, total_steps):
            same_level = self.level == change.level
            is_new = (
                self._swap_(change.swap) if change.swap and same_level else self._prune_to(change.level, change.target)
            )
            self._updated_at = change.step
        if schedule.grows:
            upcoming = schedule.change(step + 1, total_steps, interval)
            self._masked.collects = upcoming.swap > 0 and upcoming.step == step + 1 < total_steps
            self._masked.gradients.clear()
        return is_new

    def _is_due(self, change: Change, total_steps: int) -> bool:
        if self.level is None or change.level != self.level:
            return self.level is None or change.level > self.level
        made_at = self._updated_at if self._updated_at is not None else self.boundaries(total_steps)[self.level]
        return change.step > made_at

    # --- masks ----------------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str, Tensor]:
        """Bool mask by full name of the weight, True = keep; empty before the first level. Read only."""
        return self._masked.keeps

    def allocate(self, level: int) -> dict[str, float]:
        """Return the sparsity that each chosen weight would get at `level`; nothing changes."""
        return self.allocate_levels([level])[0]

    def allocate_levels(self, levels: Sequence[int] | None = None) -> list[dict[str, float]]:
        """Return `allocate` of several levels (default all) for little more than the cost of one."""
        every_level = range(len(self.target_sparsities)) if levels is None else levels
        targets = [self.target_sparsities[level] for level in every_level]
        sizes = [weight.tensor.numel() for weight in self._chosen.values()]
        reshard(self._model)
        with self._masked.dense():
            every_count = self._maker.counts(targets)
        return [
            {name: count / size for name, count, size in zip(self._chosen, counts, sizes, strict=True)}
            for counts in every_count
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
        target = self.target_sparsities[level]
        if (level, target) != (self.level, self.target_sparsity) and self._prune_to(level, target):
            self._updated_at = None
            return
        self.apply_()
        if not self.config.keep_pruned_values:
            for optimizer in self._hooks.optimizers:
                self._masked.clear_state_(optimizer, self._masked.masks)

    def permute_(self) -> PermutationReport | None:
        """Reorder channels so that more is kept, if ``pattern.permute`` asks for it and there are no masks yet.

        Done by itself before the first masks are made. Call it earlier if copies of the weights, such as an average,
        are made before: they do not follow.

        Returns:
            What was moved, see `permute_channels`; None: there was nothing to do.

        Raises:
            ConfigError: an attached optimizer has state, which does not follow.
        """
        if self._permute is None or self._masked.masks:
            return None
        check_fresh(self._hooks.optimizers)
        report, self._permute = self._permute(), None
        return report

    def masks_from_zeros_(self) -> None:
        """Make masks of the zeros that the chosen weights hold now, to go on from a sparse checkpoint.

        They stay pruned in what follows: levels of the schedule add to them, and a target below them is an error.

        Raises:
            ConfigError: zeros of the pattern come in larger units, or pruned values are kept.
        """
        if self.config.pattern.type not in ZEROS_ANYWHERE or self.config.keep_pruned_values:
            raise ConfigError(
                f"masks_from_zeros_: expected the pattern unstructured or N:M and fixed masks, got "
                f"{self.config.pattern.label} with keep_pruned_values {self.config.keep_pruned_values}. "
                "Continue with such a configuration."
            )
        self.permute_()
        self._set_masks_({name: whole(weight.tensor).detach() != 0 for name, weight in self._chosen.items()})

    def check_ranks(self) -> None:
        """Compare the masks with those of the other processes of torch.distributed; each of them has to call it.

        Done by itself whenever masks are made.

        Raises:
            SparseDetError: a mask differs; the message names the weight.
        """
        self._masked.check_ranks()

    def apply_(self, model: nn.Module | None = None) -> None:
        """Set every pruned weight to +0.0, whatever stands there.

        Args:
            model: another module with the same parameter names, such as an averaged copy; default the pruned
                model.

        Raises:
            ConfigError: it lacks a pruned weight, or has one of another shape.
        """
        if model is None:
            reshard(self._model)
        self._masked.apply_(model)

    def measure(self, model: nn.Module | None = None) -> Measurement:
        """Count the zeros that are in the weights now.

        Args:
            model: another module with the same parameter names, such as an averaged copy; default the pruned
                model.

        Raises:
            ConfigError: it has other weights.
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
        soon as they are there, so that clipping does not count them; the dynamic schedule keeps apart what it needs.
        The state of the optimizer is zeroed wherever a mask changes.

        With `SparsityConfig.keep_pruned_values` the optimizer steps on the dense values: they stand in the weights
        from the beginning of its step to the end, so that weight decay, and nothing else, moves the pruned ones; in
        every forward pass they are zero. It costs one more copy of the chosen weights.

        Args:
            optimizer: any of torch, or the wrapper of Accelerate around one.

        Raises:
            ConfigError: it is no such optimizer, or holds none of the chosen weights.
        """
        optimizer = stepping(optimizer)
        reshard(self._model)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(weight.tensor) in held for weight in self._chosen.values()):
            raise ConfigError(
                f"optimizer: expected an optimizer of the pruned model, got one that holds none of its "
                f"{len(self._chosen)} chosen weights. Build it from the parameters of the same model."
            )
        self._hooks.attach(optimizer)
        if not self.config.keep_pruned_values:
            self._masked.clear_state_(optimizer, self._masked.masks)

    def detach(self) -> None:
        """Undo every `attach`, and let weights be loaded as they are; the masks stay, to be applied by `apply_`."""
        self._hooks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on at any step, as plain containers and tensors (not copies).

        In a distributed run every process has to call it, unless masks are fixed; what one returns serves all.
        """
        made = {"level": self.level, "target_sparsity": self.target_sparsity, "updated_at": self._updated_at}
        return made | self._masked.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, and zero the weights by the masks.

        Raises:
            CheckpointError: the masks are of other weights than the chosen ones, or there are none.
        """
        reshard(self._model)
        self._masked.load_state_dict(state)
        self.level, self._updated_at = state["level"], state.get("updated_at")
        target = None if self.level is None else self.target_sparsities[self.level]
        self.target_sparsity = state.get("target_sparsity", target)
        self._hooks.watch_loading()

    # --- parts ----------------------------------------------------------------------------------------------

    def _example_inputs(self, given: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if given is None and self.config.input_shape is not None:
            return (next(self._model.parameters(), torch.empty(0)).new_zeros(self.config.input_shape),)
        if given is None and self.config.needs_profile is not None:
            raise ConfigError(
                f"sparsity.input_shape: expected the shape of an input, which {self.config.needs_profile} needs, "
                "got null. Write for example input_shape: [1, 3, 800, 1333], or pass example_inputs."
            )
        return given

    @torch.no_grad()
    def _prune_to(self, level: int, target: float | None) -> bool:
        """Make masks for a sparsity of `level`, unless those that are there serve it; tell whether they are new."""
        reshard(self._model)
        end = self.target_sparsities[level]
        target = end if target is None else target
        is_soft = self.config.keep_pruned_values
        if level == self.level and not is_soft and self.target_sparsity is not None and target <= self.target_sparsity:
            return False
        self.permute_()
        if self.config.keep_zeros and not self._masked.masks:
            self.masks_from_zeros_()
        assert target is not None
        with self._masked.dense():
            try:
                keeps = self._maker.make(target)
            except UnreachableTargetError:
                if target == end:
                    raise
                return False  # on the way there, less may be asked than is pruned already, or than limits ask for
            self._set_masks_(keeps)
        self.level, self.target_sparsity = level, target
        return True

    def _swap_(self, share: float) -> bool:
        """Drop and grow by the gradients of the last step; tell whether there were any."""
        if not self._masked.gradients:
            if not self._hooks.optimizers:
                raise ConfigError(
                    "optimizer: expected one that is attached, since the schedule grows weights by the gradients of "
                    "the step before, got none. Call attach(optimizer)."
                )
            return False
        reshard(self._model)
        self._set_masks_(self._maker.grow(share))
        return True

    def _set_masks_(self, keeps: Mapping[str, Tensor]) -> None:
        optimizers = self._hooks.optimizers
        old = self._masked.set_(keeps)
        for places in (self._masked.unchanged(old),) if optimizers else ():
            for optimizer in optimizers:
                self._masked.clear_state_(optimizer, places)
        self._hooks.watch_loading()
