"""Classification losses of dense heads.

Shapes: R anchors of all images, P positive ones among them, C classes.
"""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from sparsedet.common.config import ConfigModel


class QualityFocalLoss(ConfigModel):
    """Focal loss whose target for the right class is the IoU of the predicted box.

    Source: Li et al. 2020 (arXiv:2006.04388), eq. 5; as United-Perception (up_semantics §6).

    Attributes:
        gamma: exponent of the modulating factor.
        weight: factor of this loss in the total.
    """

    type: Literal["quality_focal"] = "quality_focal"
    gamma: NonNegativeFloat = 2.0
    weight: NonNegativeFloat = 1.0

    def sum(self, logits: Tensor, is_counted: Tensor, positive: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """Return the weighted sum over all counted anchors, a scalar.

        Args:
            logits: float32, shape (R, C).
            is_counted: bool, shape (R,); False leaves an anchor out (ignored).
            positive: int64, shape (P,), rows of the positive anchors, all of them counted.
            labels: int64, shape (P,), class of each positive anchor.
            quality: float32, shape (P,), target score in [0, 1] of each positive anchor, without gradient.
        """
        as_background = F.softplus(logits) * logits.sigmoid() ** self.gamma
        right = logits[positive, labels]
        factor = (quality - right.sigmoid()).abs() ** self.gamma
        as_object = F.binary_cross_entropy_with_logits(right, quality, reduction="none") * factor
        background = (as_background.sum(dim=1) * is_counted).sum()
        return self.weight * (background + (as_object - as_background[positive, labels]).sum())


class FocalLoss(ConfigModel):
    """Cross-entropy of every class against the others, with less weight on what is easy.

    Source: Lin et al. 2017 (arXiv:1708.02002), eq. 5; torchvision's implementation.

    Attributes:
        alpha: weight of the right class of positive anchors; all else has 1 - alpha.
        gamma: exponent of the modulating factor.
        weight: factor of this loss in the total.
    """

    type: Literal["focal"] = "focal"
    alpha: float = Field(default=0.25, ge=0, le=1)
    gamma: NonNegativeFloat = 2.0
    weight: NonNegativeFloat = 1.0

    def sum(self, logits: Tensor, is_counted: Tensor, positive: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """Return the weighted sum as `QualityFocalLoss.sum` does; the target score is 1, whatever `quality`."""
        target = logits.new_zeros(logits.shape)
        target[positive, labels] = 1
        loss: Tensor = sigmoid_focal_loss(logits, target, self.alpha, self.gamma, reduction="none")
        return self.weight * (loss.sum(dim=1) * is_counted).sum()


ClsLoss = Annotated[QualityFocalLoss | FocalLoss, Field(discriminator="type")]
