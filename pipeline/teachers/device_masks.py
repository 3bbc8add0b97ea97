"""Soft masks of queries on a device: what superpixels.mask_queries computes by NumPy, where a recipe gives it a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from superpixels.mask_queries import MaskQueries

_STRIP_ROWS = 64


@dataclass(frozen=True, eq=False)
class DeviceQueries(MaskQueries):
    """Mask queries whose soft masks, and whose pixels' names, are computed on a device in float32.

    They differ from NumPy's in the last bits only, since sums are in another order.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def _best(self, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        on_device = torch.from_numpy(weights).to(self.device)
        best = [(soft @ on_device).argmax(dim=1) for _, soft in self._on_device()]
        named: npt.NDArray[np.uint16] = torch.cat(best).cpu().numpy().astype(np.uint16)
        return named.reshape(self.size_px)

    def strips(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield the soft masks of some pixel rows at a time, as NumPy arrays."""
        for strip, soft in self._on_device():
            yield strip, soft.cpu().numpy()

    def _on_device(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield sigmoid(m) of some pixel rows at a time, float32 (rows * W, q) on the device."""
        logit = torch.from_numpy(np.ascontiguousarray(self.logit, np.float32)).to(self.device)
        rows, columns = (
            torch.from_numpy(one.toarray().astype(np.float32)).to(self.device) for one in (self.rows, self.columns)
        )
        wide = torch.einsum("qhw,xw->hxq", logit, columns)
        height, _width = self.size_px
        for top in range(0, height, _STRIP_ROWS):
            strip = slice(top, min(top + _STRIP_ROWS, height))
            soft = torch.einsum("yh,hxq->yxq", rows[strip], wide).sigmoid_()
            yield strip, soft.reshape(-1, self.n_queries)
