"""The truth as a reward: the team is right when its offer names what is best for each part of the request.

Each agent is also judged for its own part, as an agency can: it knows its catalogue.

    manager    its split: the share of parts that are there and mean what was asked; its offer: it names what was found
    a worker   what it found is what its own brief asks for, whatever the manager should have written
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents import Trip, Work, name_of
from briefs import Brief
from catalogue import Row, search


@dataclass(frozen=True, slots=True)
class Verdict:
    """The rewards of one run, each from 0 to 1."""

    team: float
    split: float
    offer: float
    workers: Mapping[str, float]
    """Those that got a brief."""


def judge(reference: Sequence[str], trip: Trip) -> Verdict:
    """Judge one run of the team by the gold briefs of its task."""
    gold = {brief.worker: brief for brief in map(parsed, reference)}
    best = {worker: best_of(brief) for worker, brief in gold.items()}
    return Verdict(
        team=float(trip.offer == offer_of({worker: f"'{row.name}'" for worker, row in best.items()})),
        split=sum(trip.works[worker].brief == str(brief) for worker, brief in gold.items() if worker in trip.works)
        / len(gold | trip.works),
        offer=float(trip.offer == offer_of({worker: name_of(work) for worker, work in trip.works.items()})),
        workers={
            worker: float(work.found is not None and work.found == _wanted(work, best.get(worker)))
            for worker, work in trip.works.items()
        },
    )


def offer_of(names: Mapping[str, str]) -> str:
    """The offer: a part of the trip and a name each."""
    return f"offer {' , '.join(f'{worker} {name}' for worker, name in names.items())}"


def parsed(text: str) -> Brief:
    """A brief that is one."""
    brief = Brief.parse(text)
    if brief is None:
        raise ValueError(f"no brief: {text!r}")
    return brief


def best_of(brief: Brief) -> Row:
    """What a worker should find."""
    row = search(brief.worker, brief.query)
    if row is None:
        raise ValueError(f"nothing in the catalogue for {brief}")
    return row


def _wanted(work: Work, best: Row | None) -> Row | None:
    """What the worker's brief asks for; where it makes no sense, what the request asked for."""
    brief = Brief.parse(work.brief)
    return (search(brief.worker, brief.query) if brief else None) or best
