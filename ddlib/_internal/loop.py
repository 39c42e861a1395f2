"""What the training loop does on the side."""

from typing import Any

from torch import nn


def frozen_parts(model: nn.Module) -> list[nn.Module]:
    """Parts that are in eval mode and have weights or statistics, all frozen: they stay in eval mode."""
    held = [(m, [*m.parameters(), *m.buffers()]) for m in model.modules() if not m.training]
    return [m for m, own in held if own and not any(tensor.requires_grad for tensor in own)]


class Diverged(FloatingPointError):
    """A training whose loss is no number any more; the message says when, and what to try."""

    @classmethod
    def of(cls, title: str, epoch: int, loss: float, history: list[dict[str, Any]], recipe: Any) -> "Diverged":
        before = f"; after epoch {epoch} it was {history[-1]['loss']:.3g}" if history else ""
        return cls(
            f"the training of {title} diverged: the loss of epoch {epoch + 1} is {loss}{before}. Try a rate below "
            f'{recipe.rate:g}, a longer rise, or precision="fp32".'
        )
