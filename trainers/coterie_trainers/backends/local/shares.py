"""Which part of a gradient step each of several training processes (ranks) does, so that together they do what one would.

Every rank is given all rows and takes its share by itself; nothing is agreed upon over the network. verl's loss divides by
the rows and tokens of the whole step and multiplies by the number of ranks, over which FSDP averages the gradients: so
the sum over the ranks' shares is the gradient that one process would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from coterie.errors import BackendError

_Row = TypeVar("_Row")


def state_file(rank: int, ranks: int) -> str:
    """The file of a checkpoint in which one rank keeps its part of optimiser and random state."""
    return "state.pt" if ranks == 1 else f"state-{rank}-of-{ranks}.pt"


def require_ranks(policy: str, folder: Path, ranks: int) -> None:
    """Raise a BackendError unless a policy's checkpoint was written by so many ranks."""
    wanted = {state_file(rank, ranks) for rank in range(ranks)}
    there = {file.name for file in folder.glob("state*.pt")}
    if wanted != there:
        raise BackendError(
            f"{folder}: policy {policy!r} was saved by {len(there)} ranks and is trained by {ranks}. Optimiser state is kept "
            f"rank by rank: go on with as many, or begin anew from the folder 'model' beside it."
        )


def passes_of_rank(
    rows: Sequence[_Row],
    passes: Callable[[Sequence[_Row]], Sequence[Sequence[_Row]]],
    length: Callable[[_Row], int],
    nothing: _Row,
    *,
    rank: int,
    ranks: int,
) -> list[Sequence[_Row]]:
    """The passes that one rank makes over its share of the rows: as many as every other rank makes.

    Sharded weights are gathered from all ranks in each pass, so a rank that made fewer would leave the others waiting; it
    makes up for it with passes over ``nothing``.

    Args:
        rows: All rows of the gradient step, in the same order on every rank.
        passes: Cuts a share into passes.
        length: A row's tokens.
        nothing: A row without a trained token.
        rank: Which share.
        ranks: Into how many the rows are dealt.
    """
    shares = [list(passes(share)) for share in _deal(rows, length, ranks)]
    return shares[rank] + [[nothing]] * (max(map(len, shares)) - len(shares[rank]))


def _deal(rows: Sequence[_Row], length: Callable[[_Row], int], ranks: int) -> list[list[_Row]]:
    """Shares of equally many rows (± 1) and about equally many tokens: the longest first, there and back."""
    shares: list[list[_Row]] = [[] for _ in range(ranks)]
    for number, row in enumerate(sorted(rows, key=length, reverse=True)):
        there_and_back = number % (2 * ranks)
        shares[min(there_and_back, 2 * ranks - 1 - there_and_back)].append(row)
    return shares
