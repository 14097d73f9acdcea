"""Training steps in two processes over gloo, and the same in one; torch alone, so that the processes start fast."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drama_models.errors import TrainingError
from tests.training.batches import labels, objectives
from training.cached_gradients import cached_embeddings
from training.cross_device import Batch, gather_batch, join_batches, widen

if TYPE_CHECKING:
    from training.objectives import Labels

WORLD, LENGTH, VOCABULARY, DIM = 2, 5, 30, 16


class Tower(nn.Module):
    """Token ids (n, LENGTH) to embeddings (n, DIM), with or without a buffer such as BERT's."""

    def __init__(self, *, buffered: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, DIM), nn.Embedding(LENGTH, DIM)
        self.layers = nn.Sequential(nn.Linear(DIM, 24), nn.Tanh(), nn.Linear(24, DIM))
        self.positions = torch.arange(LENGTH)
        if buffered:
            positions = self.positions
            del self.positions
            self.register_buffer("positions", positions)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.layers(self.tokens(ids) + self.places(self.positions)).mean(1)
        return out


class Towers(nn.Module):
    """One encoder for both kinds, or one for each, behind one `forward`."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        # a plain DistributedDataParallel model with buffers cannot be called twice before the way back; ours can
        self.towers = nn.ModuleList(Tower(buffered=case.cached) for _ in range(case.towers)).double()

    def forward(self, kind: int, ids: Tensor) -> Tensor:
        out: Tensor = self.towers[min(kind, len(self.towers) - 1)](ids)
        return out


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train."""

    objective: str = "contrastive"
    cached: bool = True
    towers: int = 1
    find_unused: bool = False
    queries: tuple[int, int] = (3, 3)
    documents: tuple[int, int] = (3, 3)
    steps: int = 1
    in_batch_negatives: bool = True


CASES = {
    **{f"{name}, cached": Case(objective=name) for name in objectives()},
    **{f"{name}, uncached": Case(objective=name, cached=False) for name in objectives()},
    "own negatives only": Case(objective="bge-en-icl", in_batch_negatives=False),
    "unequal processes": Case(objective="bge-en-icl", queries=(4, 2), documents=(2, 3)),
    "unequal processes, uncached": Case(objective="filtered", queries=(2, 3), documents=(4, 2), cached=False),
    "two encoders": Case(towers=2),
    "two encoders, unused looked for": Case(towers=2, find_unused=True),
    "one encoder, unused looked for": Case(find_unused=True),
    "two steps accumulated": Case(objective="specialisation", steps=2, towers=2),
}


def part(case: Case, rank: int) -> tuple[Tensor, Tensor, Labels]:
    """Token ids of queries and documents, and labels, of one process; two documents are in both processes' parts."""
    B, N = case.queries[rank], case.documents[rank]
    letters = "".join(chr(ord("a") + 12 * rank + number) for number in range(B * N - 2)) + "yz"
    known = labels(
        queries=B, documents=N, absent=(N - 1,), ids=letters,
        in_batch_negatives=case.in_batch_negatives, seed=rank,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(rank)
    query, document = (torch.randint(VOCABULARY, (rows, LENGTH), generator=generator) for rows in (B, B * N))
    return query, document, known


def embeddings(model: nn.Module, case: Case, rank: int) -> Batch:
    """Encoded part of one process, in chunks of two with cached gradients or all at once without."""
    query, document, known = part(case, rank)
    if case.cached:
        queries, documents = ([(kind, chunk) for chunk in ids.split(2)] for kind, ids in enumerate((query, document)))
        return (*cached_embeddings(lambda chunk: model(*chunk), queries, documents, model=model), known)
    return model(0, query), model(1, document), known


def together(case: Case) -> dict[str, Tensor]:
    """Loss and gradients of one process with the joined batch."""
    plain = replace(case, cached=False)
    model, wide = Towers(plain), max(case.documents)
    for _ in range(case.steps):
        batches = [widen(embeddings(model, plain, rank), wide) for rank in range(WORLD)]
        query = torch.cat([query for query, _, _ in batches])
        document = torch.cat([document for _, document, _ in batches])
        known = join_batches(batches, own=0)[2]
        loss = objectives()[case.objective](query, document, known)
        loss.backward()
    return found(model, loss)


def found(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Loss and gradients by name."""
    gradients = {name.removeprefix("module."): each.grad for name, each in model.named_parameters()}
    return {"loss": loss.detach()} | {name: gradient for name, gradient in gradients.items() if gradient is not None}


def process(rank: int, folder: str) -> None:
    """Run every case as one of the processes, and write what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    run_cases(rank, Path(folder))
    gc.collect()  # the group goes last: threads of one that models still hold may abort the process at its end
    dist.barrier()
    dist.destroy_process_group()


def run_cases(rank: int, folder: Path) -> None:
    """Every case in a group of processes."""
    for name, case in CASES.items():
        model = DistributedDataParallel(Towers(case), find_unused_parameters=case.find_unused)
        for step in range(case.steps):
            last = step == case.steps - 1
            with nullcontext() if last else model.no_sync():
                loss = objectives()[case.objective](*gather_batch(*embeddings(model, case, rank)))
                loss.backward()
        save_file(found(model, loss), folder / f"{name} {rank}.safetensors")
    differing = labels(in_batch_negatives=rank == 0)
    try:
        gather_batch(torch.zeros(4, DIM), torch.zeros(12, DIM), differing)
    except TrainingError as error:
        (folder / f"refused {rank}.txt").write_text(str(error), encoding="utf-8")
