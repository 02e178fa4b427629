"""Loss scaling for fp16, below whose range small gradients fall (Micikevicius et al. 2018, arXiv 1710.03740)."""

from collections.abc import Mapping

import torch

START, LEAST, MOST = 2.0**12, 2.0**-4, 2.0**16
GROWTH = 200
"""Updates in a row after which it is doubled."""
_NAMES = ("loss_scale", "loss_scale_updates")


class LossScale:
    """The power of two that the loss is multiplied by before backward, and the gradient divided by after; 1 but for fp16.

    A gradient that is not finite halves it, and is made again from the same rows: no update is left out, so the run goes as
    if it had begun with a scale that fits.
    """

    def __init__(self, compute: torch.dtype) -> None:
        self.adaptive = compute == torch.float16
        self.value, self.updates = START if self.adaptive else 1.0, 0

    def halve(self) -> bool:
        """After a gradient that is not finite: whether there is a smaller scale to try."""
        if not self.adaptive or self.value <= LEAST:
            return False
        self.value, self.updates = self.value / 2, 0
        return True

    def made(self) -> None:
        """An update was made with it."""
        self.updates += 1
        if self.adaptive and self.updates >= GROWTH:
            self.value, self.updates = min(MOST, self.value * 2), 0

    def counts(self) -> dict[str, float]:
        """What a resumed run needs of it."""
        return dict(zip(_NAMES, (self.value, float(self.updates)))) if self.adaptive else {}

    def take(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Go on from such counts; what is left of them is somebody else's."""
        if self.adaptive and counts.keys() >= set(_NAMES):
            self.value, self.updates = counts[_NAMES[0]], int(counts[_NAMES[1]])
        return {name: count for name, count in counts.items() if name not in _NAMES}
