"""How TF-CLIP is trained: learning rates of each parameter and epoch, as the reference has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from tfclip.model import TFCLIP
from tfclip.objective import TFCLIPObjective

TEMPORAL_CLASSIFIER = "objective.classifiers.temporal."
NEW_MODULES = ("model.temporal.", "objective.prompt.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Epochs, batches and learning rates; the defaults are those of the released code.

    Args:
        epochs: Passes over the training identities.
        identities_per_batch: Identities in a batch, ``P``.
        tracklets_per_identity: Tracklets of each, ``K``.
        learning_rate: Of Adam.
        weight_decay: L2 penalty, added to the gradient (not decoupled).
        bias_multiplier: Factor on the learning rate of biases.
        temporal_classifier_multiplier: Factor for the classifier of the temporal feature.
        new_module_multiplier: Factor for the temporal head and the prompt, which have no
            pre-trained weights. The released code means 10 and gets 1: its rule asks for names that
            are not there. 10 is the better start for a new training.
        warmup_epochs: Epochs in which the learning rate rises linearly.
        warmup_factor: Factor at their beginning.
        milestones: Epochs, counted from 0, at which the learning rate falls.
        decay: Factor at each milestone.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> recipe = Recipe.preset("reference")
        >>> [round(recipe.factor(epoch), 6) for epoch in (0, 5, 10, 30, 50, 70)]
        [0.1, 0.55, 1.0, 0.1, 0.01, 0.001]
    """

    epochs: int = 80
    identities_per_batch: int = 4
    tracklets_per_identity: int = 4
    learning_rate: float = 5e-6
    weight_decay: float = 1e-4
    bias_multiplier: float = 2.0
    temporal_classifier_multiplier: float = 10.0
    new_module_multiplier: float = 1.0
    warmup_epochs: int = 10
    warmup_factor: float = 0.1
    milestones: tuple[int, ...] = (30, 50, 70)
    decay: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # JSON has lists
        least = {"epochs": 1, "identities_per_batch": 2, "tracklets_per_identity": 1}
        for field in dataclasses.fields(self):
            values, low = getattr(self, field.name), least.get(field.name, 0)
            if any(value < low for value in (values if field.name == "milestones" else [values])):
                raise ValueError(f"{field.name} must be at least {low}, got {values}")

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return a recipe by its name.

        ``"reference"`` is the released code's. ``"paper60"`` is what the authors publish for the
        successor and what the paper most likely used: 60 epochs, and the faster rate for new
        modules that the released rule means. ``"tiny"`` trains the small model on drawn people.

        Raises:
            ValueError: There is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {name!r}")
        return cls(**PRESETS[name])

    def factor(self, epoch: int) -> float:
        """Return the factor on every learning rate in an epoch, counted from 0."""
        reached = sum(milestone <= epoch for milestone in self.milestones)
        warmup = 1.0
        if epoch < self.warmup_epochs:
            share = epoch / self.warmup_epochs
            warmup = self.warmup_factor * (1 - share) + share
        return warmup * self.decay**reached

    def multiplier(self, name: str) -> float:
        """Return the factor on the learning rate of one parameter.

        Args:
            name: ``model.`` or ``objective.`` and the parameter's name there.
        """
        factor = self.bias_multiplier if name.endswith("bias") else 1.0
        if name.startswith(TEMPORAL_CLASSIFIER):
            factor *= self.temporal_classifier_multiplier
        if name.startswith(NEW_MODULES):
            factor *= self.new_module_multiplier
        return factor

    def optimizer(self, model: TFCLIP, objective: TFCLIPObjective) -> torch.optim.Adam:
        """Return Adam with one group for each learning rate; frozen parameters are left out."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in named_parameters(model, objective):
            rate = self.learning_rate * self.multiplier(name)
            groups.setdefault(rate, []).append(parameter)
        return torch.optim.Adam(
            [{"params": parameters, "lr": rate} for rate, parameters in groups.items()],
            weight_decay=self.weight_decay,
        )

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the schedule of an optimizer; call its ``step`` after every epoch."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)


PRESETS: dict[str, dict] = {
    "reference": {},
    "paper60": {"epochs": 60, "milestones": (30, 50), "new_module_multiplier": 10.0},
    "tiny": {
        "epochs": 3,
        "identities_per_batch": 8,
        "new_module_multiplier": 100.0,  # the tower knows drawn people; these start from nothing
        "temporal_classifier_multiplier": 100.0,
        "warmup_epochs": 1,
        "milestones": (2,),
    },
}


class TrainingStep(nn.Module):
    """Model and objective in one forward: what data-parallel training wraps.

    Args:
        model: What is trained.
        objective: Its losses.
    """

    def __init__(self, model: TFCLIP, objective: TFCLIPObjective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, frames: Tensor, cameras: Tensor | None, identities: Tensor
    ) -> dict[str, Tensor]:
        """Return the total under ``loss``, to call ``backward`` on, and each term by its name.

        Args:
            frames: Normalised, ``(B, T, 3, H, W)``.
            cameras: ``(B,)``, or None.
            identities: ``(B,)``, 0 to K-1.
        """
        losses = self.objective(self.model(frames, cameras), identities)
        return {"loss": losses.total, **losses}


def named_parameters(
    model: TFCLIP, objective: TFCLIPObjective
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that learn, with ``model.`` or ``objective.`` before their names."""
    for prefix, module in (("model.", model), ("objective.", objective)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield prefix + name, parameter
