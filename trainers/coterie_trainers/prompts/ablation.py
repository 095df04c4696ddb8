"""Ablation: what each changed prompt adds, measured as the winner without that change.

    gain(prompt) = mean(winner) - mean(winner with the seed's text for this prompt)      on the same validation tasks

These gains need not add up to the winner's: where two roles must change together each adds all of it, and where either
suffices each adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.vocabulary import Mode
from coterie_trainers.intervals import Interval, difference_interval
from coterie_trainers.prompts.choosing import Choice, scores_of
from coterie_trainers.prompts.search import Search
from coterie_trainers.prompts.study import BudgetSpentError, Candidate

AUTHOR = "ablation"


async def gains_by_prompt(search: Search, choice: Choice) -> Mapping[str, Interval]:
    """Prompt name → what it adds on the validation tasks that the winner played, for the changed prompts.

    Costs nothing where one prompt changed: it added all. Those that the budget does not suffice for are left out.
    """
    winner, seed = choice.winner, choice.seed
    changed = [name for name, text in winner.texts.items() if text != seed.texts[name]]
    if choice.val is not None and len(changed) == 1:
        return {changed[0]: choice.val.interval}
    if not search.config.selection.ablate or not changed:
        return {}
    whole = choice.race.scores[winner.id]
    tasks = [task for task in search.val if task.id in whole]
    settings = search.config.selection
    search.progress.stage("what each changed prompt adds", len(changed) * len(tasks) * settings.samples)
    gains: dict[str, Interval] = {}
    for name in changed:
        without = Candidate({**winner.texts, name: seed.texts[name]}, parents=(winner.id,), author=AUTHOR)
        try:
            trials = await search.measure(without, tasks, samples=settings.samples, mode=Mode.VAL)
        except BudgetSpentError as error:
            search.progress.note(f"what {name} adds is not measured: {error}")
            continue
        gains[name] = difference_interval(scores_of(trials), whole, level=settings.confidence, seed=search.config.seed)
    return gains
