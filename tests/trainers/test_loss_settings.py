"""The section ``loss``: what the modes know, and settings that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from coterie_trainers.config import Loss


@pytest.mark.parametrize(
    ("settings", "clip"),
    [
        ({}, (0.2, 0.2)),
        ({"clip_high": 0.28}, (0.2, 0.28)),
        ({"clip_low": 0.1}, (0.1, 0.1)),
        ({"clip_low": 0.1, "clip_high": 0.3}, (0.1, 0.3)),
        ({"mode": "gspo"}, (3e-4, 4e-4)),
        ({"mode": "gspo", "clip_high": 5e-4}, (3e-4, 5e-4)),
        ({"mode": "geo_mean"}, (0.4, 0.4)),
    ],
)
def test_a_mode_clips_as_its_paper_unless_told_otherwise(settings: dict[str, Any], clip: tuple[float, float]) -> None:
    assert Loss.model_validate(settings).clip == clip


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "bypass_mode"}, "vanilla"),
        ({"mode": "gpg", "clip_low": 0.2}, "mode 'gpg' clips nothing: leave out clip_low"),
        ({"mode": "sapo", "clip_high": 0.2}, "mode 'sapo' clips nothing"),
        ({"mode": "gspo", "dual_clip": 3.0}, "mode 'gspo' knows no dual_clip"),
        ({"dual_clip": 1.0}, "greater than 1"),
        ({"options": {"tau_pos": 1.0}}, "mode 'vanilla' has no option 'tau_pos'; it has none"),
        ({"mode": "sapo", "options": {"tau": 1.0}}, "no option 'tau'; it has: tau_pos, tau_neg"),
        ({"mode": "dro"}, "needs options: {dro_beta: ...}"),
        ({"mode": "sapo", "aggregation": "token-mean"}, "goes with 'seq-mean-token-mean' only"),
        ({"mode": "geo_mean", "aggregation": "seq-mean-token-sum"}, "goes with 'seq-mean-token-mean' only"),
        ({"horizon": 100}, "horizon goes with aggregation 'seq-mean-token-sum-norm'"),
        ({"entropy": -0.1}, "greater than or equal to 0"),
        ({"kl": {"kind": "full"}}, "'k1', 'kl'"),
        ({"kl": {"coefficient": 0}}, "greater than 0"),
        ({"correction": {"weights": "token"}}, "would count twice: the ratio of mode 'vanilla'"),
        ({"correction": {"upper": 3.0}}, "set weights to 'token' or 'sequence' too"),
        (
            {"correction": {"proximal": "actor", "weights": "token", "lower": 2.5}},
            "lower (2.5) must be below upper (2)",
        ),
        ({"correction": {"reject": {"token_k1": 2.0}}}, "reject.token_k1 takes two bounds"),
        ({"correction": {"reject": {"token_k1": [2.0, 0.5]}}}, "reject.token_k1 takes two bounds"),
        ({"correction": {"reject": {"seq_mean_k3": [0.1, 0.2]}}}, "reject.seq_mean_k3 takes one bound"),
        ({"correction": {"reject": {"seq_k9": 0.1}}}, "'token_k1'"),
        ({"mode": "gpg", "epochs": 2}, "gradient steps after the first are wrong"),
        ({"mode": "gpg", "mini_batches": 2}, "gradient steps after the first are wrong"),
    ],
)
def test_what_contradicts_itself_is_refused_with_a_sentence(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Loss.model_validate(settings)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "gpg", "mini_batches": 4, "correction": {"weights": "token"}},
        {"mode": "gpg", "correction": {"weights": "sequence", "upper": 5.0, "lower": 0.5}},
        {"mode": "dro", "options": {"dro_beta": 0.1}, "correction": {"weights": "token"}},
        {
            "correction": {
                "proximal": "actor",
                "weights": "token",
                "reject": {"token_k1": [0.5, 2.0], "seq_max_k3": 0.1},
            }
        },
        {"correction": {"reject": {"seq_mean_k2": 0.01}}},
        {"aggregation": "seq-mean-token-sum-norm", "horizon": 4096, "kl": {"kind": "k3+"}},
        {"mode": "dppo_tv", "dual_clip": 10.0, "aggregation": "token-mean"},
    ],
)
def test_what_goes_together_goes_to_the_trainer_process_and_back(settings: dict[str, Any]) -> None:
    loss = Loss.model_validate(settings)
    assert Loss.model_validate(loss.model_dump(mode="json")) == loss
