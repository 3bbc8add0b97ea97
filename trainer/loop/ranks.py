"""The processes that train one network together, one on each GPU. `torchrun` starts them; without it there is one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import TrainerError

T = TypeVar("T")

_LEFT: list[object] = []
"""Groups of processes that were left, kept until this process ends. Torch 2.13 hangs now and then if the last to let
go of a gloo group is a network: with Python's lock held, it waits for a thread that needs it to free its last sum."""

LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
"""Words in the errors of torch's backends where another process is gone."""


@dataclass(frozen=True)
class Ranks:
    """This process among all; `local` counts on its machine. The first one alone prints and writes."""

    rank: int = 0
    world_size: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, on whichever device it lies."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """Return the rows (n, ...) of all processes, in their order, and where this one's begin.

        Numbers of rows may differ. A gradient goes back to the process whose rows it is of, summed over all.
        """
        if self.world_size == 1:
            return rows, 0
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = len(rows)
        n_rows = self.all_reduce(lengths).tolist()
        gathered: Tensor = _Gather.apply(rows, n_rows, self.rank)  # type: ignore[no-untyped-call]
        return gathered, sum(n_rows[: self.rank])

    def from_first(self, function: Callable[[], T]) -> T:
        """Call a function in the first process and return what it gives there to all.

        What it raises there is raised there, and ends the others with a TrainerError.
        """
        if self.world_size == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = function()
            except Exception as error:
                dist.broadcast_object_list([None, str(error)])
                raise
        dist.broadcast_object_list(answer)
        value, error_text = answer
        if error_text is not None:
            raise TrainerError(f"rank {self.rank} ends because rank 0 did: {error_text}")
        return value  # type: ignore[no-any-return]


ALONE = Ranks()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, n_rows: list[int], rank: int) -> Tensor:
        ctx.n_rows, ctx.rank = n_rows, rank
        padded = rows.new_zeros(max(n_rows), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in n_rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, n_rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.n_rows)[ctx.rank], None, None


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes that `torchrun` started, if it did, and yield this one's place among them.

    Where one of them is lost within the block, the others end with a TrainerError.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if absent:
        raise TrainerError(
            f"WORLD_SIZE is {size} in the environment, but {', '.join(absent)} not set: start several processes with "
            "torchrun, or unset WORLD_SIZE for one"
        )
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    ranks = Ranks(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
    try:
        yield ranks
    except RuntimeError as error:
        if isinstance(error, TrainerError) or not is_loss_of_contact(error):
            raise
        # of gloo's message, neither the line of its source nor its advice
        reason = re.sub(r"^\[.*?\] ", "", str(error).strip().splitlines()[-1]).split(". ")[0]
        raise TrainerError(
            f"rank {ranks.rank} of {size} lost another one, which ended before it ({reason}). What is saved is kept; "
            "see what that process said, and run the same command again"
        ) from None
    finally:
        _LEFT.append(dist.group.WORLD)
        dist.destroy_process_group()


def is_loss_of_contact(error: RuntimeError) -> bool:
    """Return whether an error says that another process is gone."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in LOST)
