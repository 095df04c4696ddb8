"""``counterfactual_mask`` and ``counterfactual_replay``: the credit that replays gave, in place of a comparison of rollouts.

    advantage of a turn = its audited credit            where its rollout was audited in this step (``credit.audit``)
                        = as ``loo``                    where it was not

The credit of a turn is that of its role (mask: the outcome less the outcome without the role) or its own (replay: what the
team wins from this message less what it wins from others in its place); ``audits/mask.py`` and ``audits/replay.py`` have
the formulas. Neither is scaled, and so is ``loo``, so that audited rollouts and others have advantages of one kind.

Why these baselines: what is subtracted does not depend on the turn's own message, only on what came before it, so that
the gradient's expectation is the true one; and it knows the situation, so that an agent is not paid for the luck or the
fault of others. Masking subtracts the same for all turns of a role and leaves in what the role does on the mean; a replay
leaves out that too, and costs a replay for each turn.

Sources: SHARP (arXiv 2602.08335), C3 (arXiv 2603.06859).

Where we depart: both audit every rollout; here a share of them (``credit.audit.share``) may do, which is what makes it
affordable. SHARP adds its credit to the team's reward, with a weight.

Degrades to: ``loo`` where nothing is audited, or where no replay was evidence. Rewards bound to roles are not in what a
replay came to: an audited turn is paid by the team's outcome alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.loo import loo


def counterfactual(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """The audited credit of each turn, and ``loo`` for those without: ``advantages_N``."""
    audited_N = np.array([np.nan if sample.audited is None else sample.audited for sample in samples], dtype=np.float64)
    return np.where(np.isnan(audited_N), loo(samples), audited_N)
