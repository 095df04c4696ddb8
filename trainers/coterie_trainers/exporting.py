"""``coterie export-policy``: a trained policy as a folder of its own, for vLLM, transformers and PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from coterie.errors import ConfigError
from coterie_trainers.workspace import checkpoint_folder, saved_steps

ADAPTER_SETTINGS = "adapter_config.json"
"""The file that makes a folder a PEFT adapter."""
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "chat_template*",
)


def export_policy(
    work: Annotated[Path, typer.Argument(metavar="WORK", help="The work folder of a training run.")],
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="Which policy.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    step: Annotated[
        int | None,
        typer.Option(help="From the checkpoint after this step; by default the run's result, else the last."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="An adapter as a whole model, with itself worked in.")
    ] = False,
) -> None:
    """Write a trained policy as a Hugging Face folder; an adapter as a PEFT folder, or merged into its model."""
    source = trained_folder(work, policy, step)
    export(source, out, merged=merged)
    typer.echo(f"{source} → {out}")


def trained_folder(work: Path, policy: str, step: int | None = None) -> Path:
    """Where a run has a policy: its result, or a checkpoint.

    Args:
        work: The work folder.
        policy: Which policy.
        step: The step whose checkpoint is meant; by default the result, and without one the newest checkpoint.

    Raises:
        ConfigError: there is none; the message says which there are.
    """
    steps = saved_steps(work)
    result = work / "policies" / policy
    if step is None and result.is_dir():
        return result
    if not steps:
        raise ConfigError(f"{work} holds no checkpoint: it is no work folder of a training run, or one without a step.")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise ConfigError(f"{work} holds no checkpoint of step {step}; there are: {', '.join(map(str, steps))}.")
    checkpoint = checkpoint_folder(work, chosen)
    found = checkpoint / policy / "model"
    if not found.is_dir():
        there = sorted(path.parent.name for path in checkpoint.glob("*/model"))
        raise ConfigError(f"The run in {work} trained no policy {policy!r}; it trained: {', '.join(there)}.")
    return found


def export(source: Path, out: Path, *, merged: bool = False) -> None:
    """Write a policy's folder as one that stands for itself.

    Args:
        source: A Hugging Face folder, or a PEFT folder that names its model.
        out: A folder that is not there yet.
        merged: Write an adapter as a whole model. A whole policy is one already.

    Raises:
        ConfigError: ``out`` is there, or an adapter's model is not where it was.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; name a new folder.")
    if not (source / ADAPTER_SETTINGS).is_file():
        shutil.copytree(source, out)
        return
    model = Path(json.loads((source / ADAPTER_SETTINGS).read_text())["base_model_name_or_path"])
    if not (model / "config.json").is_file():
        raise ConfigError(
            f"The adapter in {source} belongs to the model in {model}, which is not there any more. Put it back, or "
            f"change base_model_name_or_path in {source / ADAPTER_SETTINGS}."
        )
    if merged:
        from coterie_trainers.backends.local.merged_adapter import merge

        merge(source, model, out)
    else:
        shutil.copytree(source, out)
        for pattern in _TOKENIZER_FILES:
            for file in model.glob(pattern):
                shutil.copy2(file, out / file.name)
