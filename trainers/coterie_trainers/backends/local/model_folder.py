"""What a Hugging Face folder must be before servers and trainers are started on it."""

from __future__ import annotations

import json
from pathlib import Path

from coterie.errors import ConfigError

PROBE = "Add 2024 and 137: SELECT name FROM songs WHERE seconds >= 200 ;\n  def f(x): return x**2"
"""Text whose tokens a server must see as the folder's tokenizer has them: digits, spaces and operators are where they differ."""


def require_model(policy: str, model: Path) -> None:
    """Check a policy's folder.

    Raises:
        ConfigError: it is no Hugging Face folder with a model in it, or its vocabulary is smaller than its tokenizer's.
    """
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (model / name).is_file()]
    if not missing and not any(model.glob("*.safetensors")):
        missing = ["model.safetensors"]
    if missing:
        raise ConfigError(
            f"policies.{policy}.model: {model} is no Hugging Face folder: {', '.join(missing)} is missing."
        )
    _require_vocabulary(policy, model)


def probe_ids(model: Path) -> list[int] | None:
    """The token ids of ``PROBE`` by the folder's own tokenizer, whatever class a library makes of it; None without one."""
    file = model / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids)


def require_same_tokens(policy: str, model: Path, seen: list[int]) -> None:
    """Check that a server tokenizes as the folder says.

    Args:
        policy: Which one.
        model: Its folder.
        seen: The token ids that the server makes of ``PROBE``.

    Raises:
        ConfigError: they are others.
    """
    wanted = probe_ids(model)
    if wanted is not None and wanted != seen:
        kind = json.loads((model / "config.json").read_text()).get("model_type")
        raise ConfigError(
            f"policies.{policy}.model: the server does not tokenize as {model / 'tokenizer.json'} says: it makes "
            f"{len(seen)} tokens of a probe, the file {len(wanted)}. transformers gives some model types a tokenizer "
            f"class of their own ('qwen2' splits digits, for one); this one is {kind!r}. A model made for this "
            f"tokenizer would see other tokens than it was made with: give it a model_type that keeps its tokenizer, such as "
            f"'llama' or 'qwen3'."
        )


def _require_vocabulary(policy: str, model: Path) -> None:
    file = model / "tokenizer.json"
    shape = json.loads((model / "config.json").read_text())
    rows = shape.get("text_config", shape).get("vocab_size")
    if rows is None or not file.is_file():
        return
    from tokenizers import Tokenizer

    tokens = max(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if tokens > rows:
        raise ConfigError(
            f"policies.{policy}.model: in {model} the tokenizer has {tokens} tokens and the model has room for {rows} "
            f"(vocab_size in config.json). Resize the model's embeddings to the tokenizer, or take the tokenizer that "
            f"it was trained with."
        )
