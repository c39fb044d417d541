"""Several processes that train one model: who is who, and what they tell each other.

Every process computes the part of the loss that its own pictures have, as a sum over its rows divided by the number of
rows of all processes. The losses add up to that of one process with the whole batch, and so do the gradients: what an
objective needs of the other processes' rows comes from ``gather``, whose gradient goes back to them. Started by
torchrun; without it there is one process, and nothing here does anything. Knows nothing about pictures or models.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from skumatch.errors import ConfigError

PATIENCE = timedelta(hours=2)  # how long a process waits for the others: the first validates while they wait
BUCKET = 1 << 24  # numbers that are summed over the processes in one go: 64 MiB


@dataclass(frozen=True)
class Ranks:
    """Process ``rank`` of ``world``; ``local``, its place among the ``locals`` of its machine, which is ``node``."""

    rank: int = 0
    world: int = 1
    local: int = 0
    locals: int = 1
    node: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def device(self, name: str) -> str:
        """Return the device that this process uses where ``name`` was asked for: several have a GPU each."""
        return name if self.alone or not name.startswith("cuda") else f"cuda:{self.local}"

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Return (sum of ``counts``, ...), the rows (N, ...) of every process in order.

        ``counts``: how many rows each process has. Gradients go back to where the rows belong.
        """
        if self.alone:
            return rows
        gathered: Tensor = _Gather.apply(rows, self.rank, tuple(counts))
        return gathered

    def every(self, *numbers: int) -> list[tuple[int, ...]]:
        """Return the ``numbers`` of every process."""
        if self.alone:
            return [numbers]
        own = torch.tensor(numbers, device=_here())
        found = [torch.zeros_like(own) for _ in range(self.world)]
        dist.all_gather(found, own)
        return [tuple(one.tolist()) for one in found]

    def total(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over the processes into each of ``tensors``; all processes must name the same ones."""
        if self.alone:
            return
        for bucket in _buckets(list(tensors)):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over the processes into each of ``tensors``."""
        every = list(tensors)
        self.total(every)
        if not self.alone:
            for tensor in every:
                tensor /= self.world

    def share(self, thing: Any) -> Any:
        """Return the first process's ``thing``, of plain JSON values, in all of them."""
        if self.alone:
            return thing
        said = json.dumps(thing).encode() if self.first else b""
        block = torch.zeros(self.every(len(said))[0][0], dtype=torch.uint8, device=_here())
        if self.first:
            block.copy_(torch.frombuffer(bytearray(said), dtype=torch.uint8))
        dist.broadcast(block, 0)
        return json.loads(block.cpu().numpy().tobytes())

    def share_tensors(self, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Return the first process's named ``tensors`` in all of them, on ``device``; the others' are not looked at."""
        if self.alone:
            return dict(tensors)
        kinds = {name: [list(one.shape), str(one.dtype).removeprefix("torch.")] for name, one in tensors.items()}
        found = {}
        for name, (shape, dtype) in self.share(kinds).items():
            one = (
                tensors[name].to(_here())
                if self.first
                else torch.empty(shape, dtype=getattr(torch, dtype), device=_here())
            )
            one = one.contiguous()
            dist.broadcast(one, 0)
            found[name] = one.to(device)
        return found

    def wait(self) -> None:
        """Wait until every process is here."""
        self.every(0)


def _here() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield ``tensors`` in order, in lists of one dtype that hold up to ``BUCKET`` numbers or one tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(one.numel() for one in bucket) + tensor.numel() > BUCKET
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


class _Gather(torch.autograd.Function):
    """All processes' rows; the gradient of a row is the sum of what every process's loss says of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, counts: tuple[int, ...]) -> Tensor:
        ctx.start, ctx.count = sum(counts[:rank]), len(rows)
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded)
        return torch.cat([one[:count] for one, count in zip(every, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole[ctx.start : ctx.start + ctx.count], None, None


def writes() -> bool:
    """Return whether this process is the one that speaks to the user: the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them at the end; one process alone joins nothing.

    ``device``: "cpu" talks by gloo, "cuda" by NCCL. Raises ConfigError when the surroundings make no sense, or the
    machine has fewer GPUs than processes.
    """
    try:
        found = Ranks(*(int(os.environ.get(name, usual)) for name, usual in _VARIABLES))
    except ValueError:
        raise ConfigError("the environment variables of torchrun are no numbers", "start it with torchrun") from None
    if found.alone:
        yield Ranks()
        return
    on_gpu = device == "cuda"
    if on_gpu and found.local >= torch.cuda.device_count():
        raise ConfigError(
            f"process {found.local + 1} of this machine has no GPU of its own: it has {torch.cuda.device_count()}",
            "lower --nproc-per-node",
        )
    if on_gpu:
        torch.cuda.set_device(found.local)
    # Its functions have the group of all as a default: imported later, by an optimiser, it would keep the group from
    # ending with ``destroy_process_group``, and its threads from ending before the process does, which aborts it.
    importlib.import_module("torch.distributed.nn.functional")

    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield found
    finally:
        dist.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"), ("GROUP_RANK", "0"))
