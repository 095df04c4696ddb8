"""``gepa``: reflective evolution of the prompts of all roles, on the ``gepa`` package.

::

    pool = {seed}, measured on all validation tasks
    again and again:
        parent  = drawn from the Pareto frontier over validation tasks: often what is best on many
        batch   = `minibatch` train tasks, played by the parent
        prompts = those to change                                 (setting `choice`)
        child   = the parent with the new texts that the reflecting model writes for them, from what it sees   (`view`)
        if the child does better on the batch: measure it on all validation tasks, and into the pool
        after a success: a merge of two on the frontier, each prompt from the one that changed it

Why: a text that is learnt from a few traces, read by a model, says more than a number; and the frontier keeps what is best on
some tasks though it is not the best on average, so that what was learnt on different tasks comes together.

Source: GEPA, arXiv 2507.19457, by its authors' package. What is ours:

- ``view: role`` (default). The paper shows a module its part of the trace and the metric's feedback on the whole. Here each
  role's reflection sees its own turns, the rewards that are bound to it, and what later roles made of its words
  (``feedback.py``). ``view: trace`` is the paper's system as it is used for teams: the whole trace, the same for every
  prompt, with every reward, and nobody is blamed.
- ``choice: credit`` (default with ``view: role``). The paper changes one prompt after the other. Here the one with the largest
  blame (``blame.py``) / (1 + how often it was tried on this parent) is changed; after two such rounds through all prompts of a
  parent two are changed at once, after two more three, since some lessons help only together.
- ``accept: role`` (default with ``view: role``). The paper asks for a higher sum of scores on the batch. Here an equal sum
  suffices if the changed roles' own rewards are higher: half of a change that two roles must make is kept.
- What cannot be used (an empty text, one without a placeholder) is asked for once more and then refused, before it is played.
- Scores are scaled from their range to 0.5 … 1 before the package sees them: it draws a merge's ancestor by score, which a
  score of 0 or less would break off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import PositiveInt, field_validator

from coterie.errors import ConfigError
from coterie_trainers.prompts.settings import checked, template
from coterie_trainers.prompts.study import Candidate, Optimiser, Study
from coterie_trainers.sections import Section

TEMPLATE = """\
You improve {{part}} of the role {{role}} in a team of agents. It reads:

<current>
{{prompt}}
</current>

This is what was seen of it on some tasks, the worst first:

{{experience}}

Write a better text for the role {{role}}. Read what went wrong, find what the text should have said so that the role had done \
right, and say that as a rule for all tasks like these. Put in facts of the matter that the role could not know otherwise. \
Keep what works. Judge the role by what it could know and do: where another role is at fault, do not mend it here. Do not put \
answers to single tasks into the text, and do not make it longer than it must be.

First say in at most three sentences what is wrong or missing.
"""


class GepaSettings(Section):
    """The settings of ``gepa``."""

    view: Literal["role", "trace"] = "role"
    """What the reflection on a prompt sees: its role's own turns with downstream blame, or the whole trace of the team."""
    choice: Literal["credit", "round_robin", "all"] | None = None
    """Which prompts are changed; by default ``credit`` with ``view: role``, else ``round_robin``."""
    accept: Literal["role", "team"] | None = None
    """Whether a role's own rewards decide between equal scores of the team; by default ``role`` with ``view: role``."""
    minibatch: PositiveInt = 3
    """Train tasks that a change is learnt from, and tried on first."""
    children: PositiveInt = 1
    """Changes that are tried at once, each with a parent and a minibatch of its own."""
    merge: bool = True
    """Whether candidates that changed different prompts are merged."""
    merges: PositiveInt = 5
    """Most merges that are taken."""
    iterations: PositiveInt | None = None
    """Most iterations; null goes on until the budget is spent."""
    patience: PositiveInt = 12
    """Iterations in a row without a rollout that was not known already, after which the search ends: there is nothing to
    learn, or the reflecting model writes nothing new."""
    max_chars: PositiveInt = 24_000
    """About how many characters of experience a question shows."""
    template: str = TEMPLATE
    """A text or a file: ``{{prompt}}``, ``{{experience}}``; may have ``{{role}}``, ``{{part}}``."""

    @field_validator("template")
    @classmethod
    def _template(cls, value: str) -> str:
        return template(value, needs=("prompt", "experience"), offers=("role", "part"))

    @property
    def chosen_by(self) -> Literal["credit", "round_robin", "all"]:
        """``choice``, or its default."""
        return self.choice or ("credit" if self.view == "role" else "round_robin")

    @property
    def accepted_by(self) -> Literal["role", "team"]:
        """``accept``, or its default."""
        return self.accept or ("role" if self.view == "role" else "team")


def make(**settings: Any) -> Optimiser:
    """GEPA with role-aware reflection; the settings are those of ``GepaSettings``.

    Raises:
        ConfigError: a setting is unknown or not allowed, or the package ``gepa`` is not installed.
    """
    chosen = checked(GepaSettings, "gepa", settings)
    try:
        import gepa  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "optimiser 'gepa': the package gepa is not installed. Install it with: pip install 'coterie[prompts]'"
        ) from error
    return Gepa(chosen)


class Gepa:
    """The optimiser."""

    asks_model = True

    def __init__(self, settings: GepaSettings) -> None:
        self.settings = settings

    async def __call__(self, study: Study) -> Sequence[Candidate]:
        """The pool without the seed, best on validation first; of equals the older.

        What was found promising when the budget ended before it was measured on validation comes last.
        """
        from coterie_trainers.prompts.gepa_search import GepaSearch

        return await GepaSearch(study, self.settings).run()
