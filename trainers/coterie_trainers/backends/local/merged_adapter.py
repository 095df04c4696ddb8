"""An adapter worked into its model: a whole Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

_NOT_COPIED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.gguf",
    "config.json",
)


def merge(adapter: Path, model: Path, out: Path) -> None:
    """Write the sum of both, in 32 bits: in fewer it would be rounded.

    Args:
        adapter: A PEFT folder.
        model: The Hugging Face folder that it belongs to.
        out: Is made, whole or not at all.
    """
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    whole = PeftModel.from_pretrained(whole, adapter).merge_and_unload()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # Tokenizer and templates as files: read and written again, transformers may make another tokenizer of them.
    shutil.copytree(model, partial, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    whole.save_pretrained(partial)
    partial.rename(out)
