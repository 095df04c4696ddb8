"""Our advantages beside those of the papers' own code, on random episodes.

python benchmarks/references.py --dr-mas CHECKOUT --hgpo CHECKOUT [--episodes N] [--json FILE]

    git clone https://github.com/langfengQ/DrMAS        # Dr. MAS (arXiv 2602.08847), with GiGPO (arXiv 2505.10978) in it
    git clone https://github.com/CazeroZ/hgpo           # HGPO (arXiv 2602.22817)

Their functions are read out of the checkouts and run as they are, in double precision; of verl its own. Wants torch and verl. Two
things are set alike: the constant under their fractions, where we have none, is 1e-12, and HGPO's standard deviation is the
sample's, as in the other two. Where we depart on purpose (``docs/paper_index.md``) the line says so.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import importlib
import json
import random
import subprocess
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from facts.machine import machine
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.state import discounted

DR_MAS = ("19c632bc0f75730b6db98d90b5035ee9bb7f66d1", "verl/trainer/ppo/core_algos.py")
HGPO = ("aa649272e79506e295ba6dfb43dd06bbaee22e97", "hgpo/core_hgpo.py")
"""Commit and file."""
NO_EPSILON = 1e-12
AGREE = 1e-5

Draw = Callable[[random.Random], Any]


def main() -> int:
    """Compare everything; 1 if something that should agree does not."""
    given = arguments()
    dr_mas, hgpo = functions_of(given.dr_mas, *DR_MAS), functions_of(given.hgpo, *HGPO)
    verl = importlib.import_module("verl.trainer.ppo.core_algos")
    found: dict[str, Any] = {}
    for what, theirs_like in (
        ("`role` and Dr. MAS, one call a role", one_call_a_role(dr_mas)),
        ("`role` and Dr. MAS, one to four calls a role: we depart", several_calls_a_role(dr_mas)),
        ("`rollout` and GRPO over rollouts in Dr. MAS' repository", one_reward_a_rollout(dr_mas)),
        ("`state` and GiGPO, one role", states(dr_mas)),
        ("`state_history` and HGPO, returns that differ", histories(hgpo, "own")),
        ("`state_history` and HGPO, returns of 0 and 1: we depart", histories(hgpo, "team")),
        ("`role_turn` and verl's GRPO by task, role and turn, as AT-GRPO", turns(verl)),
        ("`transition` and verl's GRPO by task", calls(verl)),
        ("`loo` and verl's RLOO by task and role", leave_one_out(verl)),
    ):
        differences = np.concatenate(list(theirs_like(given.episodes)))
        found[what] = {
            "turns": len(differences),
            "differ": int((differences > AGREE).sum()),
            "largest": float(differences.max()),
        }
        print(f"{what}: {found[what]['differ']} of {len(differences)} turns differ, by {differences.max():.1e} at most")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "compared": found}, indent=1) + "\n")
    should = [each for what, each in found.items() if "depart" not in what and "HGPO" not in what]
    return int(any(each["differ"] for each in should))


# What is compared: each gives, draw by draw, the absolute differences of all turns.


def one_call_a_role(theirs: dict[str, Any]) -> Callable[[int], Iterator[NDArray[np.float64]]]:
    """Statistics over a role's steps are those over its rollouts, where it makes one step in each."""

    def compare(draws: int) -> Iterator[NDArray[np.float64]]:
        for samples in drawn(draws, roles="abc", turns=once, reward="own"):
            yield apart(ours("role", samples), grpo_of(theirs, samples, by_role=True))

    return compare


def several_calls_a_role(theirs: dict[str, Any]) -> Callable[[int], Iterator[NDArray[np.float64]]]:
    """Dr. MAS counts steps, we count rollouts."""

    def compare(draws: int) -> Iterator[NDArray[np.float64]]:
        for samples in drawn(draws, roles="ab", turns=one_to_four, reward="own"):
            yield apart(ours("role", samples), grpo_of(theirs, samples, by_role=True))

    return compare


def one_reward_a_rollout(theirs: dict[str, Any]) -> Callable[[int], Iterator[NDArray[np.float64]]]:
    """Each rollout counts once, however many calls it made."""

    def compare(draws: int) -> Iterator[NDArray[np.float64]]:
        for samples in drawn(draws, roles="ab", turns=one_to_four, reward="team"):
            yield apart(ours("rollout", samples), grpo_of(theirs, samples, by_role=False))

    return compare


def states(theirs: dict[str, Any]) -> Callable[[int], Iterator[NDArray[np.float64]]]:
    """Both parts of GiGPO's advantage, and its discounted returns."""

    def compare(draws: int) -> Iterator[NDArray[np.float64]]:
        for samples in drawn(draws, roles="a", turns=one_to_four, reward="team"):
            last = {sample.rollout_id: place for place, sample in enumerate(samples)}
            batch = SimpleNamespace(
                non_tensor_batch={
                    "rewards": np.array(
                        [
                            sample.reward if last[sample.rollout_id] == place else 0.0
                            for place, sample in enumerate(samples)
                        ]
                    ),
                    "traj_uid": named(samples, "rollout_id"),
                    "active_masks": np.ones(len(samples)),
                    "env_step": np.array([sample.step for sample in samples]),
                },
                batch={"input_ids": torch.zeros(1)},
            )
            returns = theirs["compute_step_discounted_returns"](batch, 0.95).double()
            advantages, _ = theirs["compute_gigpo_outcome_advantage"](
                rewards_of(samples),
                returns,
                ones(samples),
                named(samples, "state_key"),
                named(samples, "task_id"),
                named(samples, "rollout_id"),
                epsilon=NO_EPSILON,
                mode="mean_std_norm",
            )
            yield apart(ours("state", samples), advantages[:, 0])

    return compare


def histories(theirs: dict[str, Any], reward: str) -> Callable[[int], Iterator[NDArray[np.float64]]]:
    """The part of HGPO's advantage that compares within states; the other is GRPO's."""

    def compare(draws: int) -> Iterator[NDArray[np.float64]]:
        for samples in drawn(draws, roles="a", turns=one_to_four, reward=reward):
            advantages, _ = theirs["compute_hgpo_outcome_advantage"](
                torch.tensor(discounted(samples)),
                ones(samples),
                named(samples, "state_key"),
                named(samples, "task_id"),
                named(samples, "rollout_id"),
                history_length=2,
                epsilon=NO_EPSILON,
                mode="mean_std_norm",
            )
            within = ours("state_history", samples) - ours("role", samples)
            yield apart(within, advantages[:, 0])

    return compare


def turns(verl: Any) -> Callable[[int], Iterator[NDArray[np.float64]]]:
    """AT-GRPO's code gives verl's GRPO a group id made of task, agent and turn. A lone turn, which verl leaves as it is, is passed over."""

    def compare(draws: int) -> Iterator[NDArray[np.float64]]:
        for samples in drawn(draws, roles="ab", turns=one_to_four, reward="own"):
            keys = [f"{sample.task_id} {sample.role} {sample.turn}" for sample in samples]
            count = Counter(keys)
            company = np.array([count[key] > 1 for key in keys])
            advantages, _ = verl.compute_grpo_outcome_advantage(
                rewards_of(samples), ones(samples), np.array(keys), NO_EPSILON
            )
            yield apart(ours("role_turn", samples), advantages[:, 0])[company]

    return compare


def calls(verl: Any) -> Callable[[int], Iterator[NDArray[np.float64]]]:
    """LightningRL as published: calls are grouped by task."""

    def compare(draws: int) -> Iterator[NDArray[np.float64]]:
        for samples in drawn(draws, roles="ab", turns=one_to_four, reward="own"):
            advantages, _ = verl.compute_grpo_outcome_advantage(
                rewards_of(samples), ones(samples), named(samples, "task_id"), NO_EPSILON
            )
            yield apart(ours("transition", samples), advantages[:, 0])

    return compare


def leave_one_out(verl: Any) -> Callable[[int], Iterator[NDArray[np.float64]]]:
    """RLOO in each role's group."""

    def compare(draws: int) -> Iterator[NDArray[np.float64]]:
        for samples in drawn(draws, roles="ab", turns=once, reward="own"):
            keys = np.array([f"{sample.task_id} {sample.role}" for sample in samples])
            advantages, _ = verl.compute_rloo_outcome_advantage(rewards_of(samples), ones(samples), keys)
            yield apart(ours("loo", samples), advantages[:, 0])

    return compare


# Machinery


def drawn(draws: int, *, roles: str, turns: Draw, reward: str) -> Iterator[list[Sample]]:
    """Random episodes of four tasks with six rollouts each, in three states. ``reward``: each turn its ``own``, or the ``team``'s."""
    for seed in range(draws):
        rng = random.Random(seed)
        samples: list[Sample] = []
        for task in range(4):
            for rollout in range(6):
                of_team = rng.choice([0.0, 1.0])
                step = 0
                for role in roles:
                    for turn in range(turns(rng)):
                        own = rng.random() if reward == "own" else of_team
                        state = f"state {rng.randrange(3)}"
                        samples.append(
                            Sample(f"{task}", f"{task}/{rollout}", role, role, turn, own, state_key=state, step=step)
                        )
                        step += 1
        yield samples


def once(_: random.Random) -> int:
    """Calls of a role in a rollout."""
    return 1


def one_to_four(rng: random.Random) -> int:
    """Calls of a role in a rollout."""
    return rng.randint(1, 4)


def ours(name: str, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """What our estimator of this name says."""
    estimate = getattr(importlib.import_module(f"coterie_trainers.advantages.{name}"), name)
    return np.asarray(estimate(samples), dtype=np.float64)


def grpo_of(theirs: dict[str, Any], samples: Sequence[Sample], *, by_role: bool) -> torch.Tensor:
    """GRPO as in Dr. MAS' repository."""
    groups = [sample.task_id + sample.role if by_role else sample.task_id for sample in samples]
    advantages, _ = theirs["compute_grpo_outcome_advantage"](
        rewards_of(samples),
        ones(samples),
        np.array(groups),
        named(samples, "rollout_id"),
        epsilon=NO_EPSILON,
        group_by_agent_id=by_role,
    )
    return advantages[:, 0]


def apart(one: NDArray[np.float64], other: torch.Tensor) -> NDArray[np.float64]:
    """Absolute differences."""
    return np.asarray(np.abs(one - other.double().numpy()), dtype=np.float64)


def rewards_of(samples: Sequence[Sample]) -> torch.Tensor:
    """One token a turn, with its reward."""
    return torch.tensor([[sample.reward] for sample in samples], dtype=torch.float64)


def ones(samples: Sequence[Sample]) -> torch.Tensor:
    """The mask of one token a turn."""
    return torch.ones(len(samples), 1, dtype=torch.float64)


def named(samples: Sequence[Sample], field: str) -> NDArray[Any]:
    """One field of all."""
    return np.array([getattr(sample, field) for sample in samples], dtype=object)


def functions_of(checkout: Path, commit: str, file: str) -> dict[str, Any]:
    """The functions of a file of a checkout, but for decorators, prints, breakpoints and the divisor of ``np.std``."""
    shown = subprocess.run(["git", "-C", str(checkout), "show", f"{commit}:{file}"], capture_output=True, check=False)
    if shown.returncode:
        sys.exit(f"{checkout} has no {file} at {commit}: {shown.stderr.decode().strip()}")
    tree = ast.parse(shown.stdout.decode())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        assert isinstance(node, ast.FunctionDef)
        node.decorator_list = []
    numbers = SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if not name.startswith("__")})
    numbers.std = lambda values: np.std(values, ddof=1)
    names: dict[str, Any] = {
        "np": numbers,
        "torch": torch,
        "uuid": uuid,
        "defaultdict": defaultdict,
        "Counter": Counter,
        "SequenceMatcher": SequenceMatcher,
        "print": silent,
        "breakpoint": silent,
    }
    exec(compile(tree, file, "exec", flags=__future__.annotations.compiler_flag), names)
    return names


def silent(*_: object, **__: object) -> None:
    """In place of their prints and breakpoints."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dr-mas", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--hgpo", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--episodes", type=int, default=200, metavar="N", help="draws of 24 rollouts each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
