"""agentlightning's prompt tuner (APO) against a model that answers at once; run with a Python that has it.

Its trainer as it comes. Every rollout makes one call; a gradient and an edit are one call each.

python benchmarks/peers/agentlightning_prompts.py --base-url URL --rounds N
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import time
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    given = parser.parse_args()

    import agentlightning as agl
    import poml  # noqa: F401 - what its tuner renders its templates with is imported before the clock starts
    from openai import AsyncOpenAI, OpenAI

    logging.getLogger("agentlightning").setLevel(logging.ERROR)

    @agl.rollout
    def solver(task: dict[str, Any], prompt_template: agl.PromptTemplate) -> float:
        with OpenAI(base_url=given.base_url, api_key="none", max_retries=0) as client:
            client.chat.completions.create(
                model="scripted",
                messages=[
                    {"role": "system", "content": prompt_template.format()},
                    {"role": "user", "content": task["name"]},
                ],
            )
        return 0.5

    tuner: agl.APO[Any] = agl.APO(
        AsyncOpenAI(base_url=given.base_url, api_key="none", max_retries=0),
        gradient_batch_size=2,
        val_batch_size=4,
        beam_width=2,
        branch_factor=2,
        beam_rounds=given.rounds,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainer = agl.Trainer(
        algorithm=tuner,
        n_runners=4,
        initial_resources={
            "prompt": agl.PromptTemplate(template="You are a helpful agent.", engine="f-string"),
        },
        adapter=agl.TraceToMessages(),
        port=port,
    )
    train, val = ([{"name": f"{split} {number}"} for number in range(4)] for split in ("train", "val"))
    began = time.perf_counter()
    trainer.fit(solver, train_dataset=train, val_dataset=val)
    print(json.dumps({"seconds": round(time.perf_counter() - began, 2)}), flush=True)


if __name__ == "__main__":
    main()
