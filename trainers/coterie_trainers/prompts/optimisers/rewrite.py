"""``rewrite``: one rewrite of each prompt by the reflecting model, which sees the prompt and nothing of what it led to.

A baseline. What a search gains beyond this it owes to the traces, and not to a strong model that writes better prompts anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie_trainers.prompts.at_once import at_once
from coterie_trainers.prompts.proposing import propose, question
from coterie_trainers.prompts.study import Candidate, Optimiser, Study

AUTHOR = "optimiser:rewrite"
QUESTION = """\
This is {{part}} of the role {{role}} in a team of agents:

<current>
{{prompt}}
</current>

Write it anew so that a model does its work better with it: say plainly what is to be done, what the answer must hold, and what \
to avoid. Keep every placeholder in double braces as it is.
"""


def make() -> Optimiser:
    """An optimiser that rewrites each prompt once. It has no settings."""
    return Rewrite()


class Rewrite:
    """The optimiser."""

    asks_model = True

    async def __call__(self, study: Study) -> Sequence[Candidate]:
        """One candidate with all prompts rewritten; none if the reflecting model gave nothing that can be used."""
        prompts = list(study.prompts.values())
        asked = await at_once(
            propose(
                study, question(QUESTION, prompt, {"prompt": study.seed.texts[prompt.name]}), prompt, purpose="rewrite"
            )
            for prompt in prompts
        )
        texts = {prompt.name: text for prompt, text in zip(prompts, asked.results, strict=True) if text is not None}
        if not texts:
            return []
        why = dict.fromkeys(texts, "one rewrite by the reflecting model, without looking at any rollout")
        return [Candidate({**study.seed.texts, **texts}, parents=(study.seed.id,), author=AUTHOR, why=why)]
