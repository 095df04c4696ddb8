"""A small language model made from nothing, for a team to be tried on a CPU: a tokenizer, half a million weights, a warm start.

An example's ``prepare`` calls ``make`` with demonstrations of its team's calls. Out comes an ordinary Hugging Face folder
that transformers and ``vllm serve`` load. A model that imitates sloppy demonstrations starts out poor but not hopeless,
and reinforcement learning has something to do.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from coterie_trainers.demonstration import Demonstration

STEPS = 1200
"""Gradient steps of the warm start."""
BATCH = 32
LEARNING_RATE = 4e-3
CONTEXT = 256
"""Tokens of the longest prompt and answer together."""

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Progress(Protocol):
    """Told what happens."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Another stage begins, of so many units if that is known."""

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        """Units done."""


def make(
    folder: Path, demonstrations: Sequence[Demonstration], *, seed: int, progress: Progress, steps: int = STEPS
) -> None:
    """Make a model that imitates the demonstrations: ``folder`` is whole or absent. What an earlier call left is replaced."""
    tokenizer = make_tokenizer(demonstrations)
    torch.manual_seed(seed)
    model = make_model(tokenizer)
    progress.stage("warm start: imitating hasty demonstrations", steps)
    imitate(model, tokenizer, demonstrations, steps=steps, seed=seed, progress=progress)

    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def make_tokenizer(demonstrations: Sequence[Demonstration]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that makes every word, name and number of the task one token.

    The small model copies a value from question to plan to query only if it is the same token in all three. Hence a
    word takes its leading space along, whatever it is made of: `` 'Iris'`` and `` count(*)`` are one token each.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s?]+|\?|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        special_tokens=[PAD, SYSTEM, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for shown in demonstrations for text in (shown.system, shown.user, shown.answer))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=CONTEXT)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """About half a million random weights. Smaller first weights than 0.08 do not learn to copy in so few steps."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def imitate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: Sequence[Demonstration],
    *,
    steps: int,
    seed: int,
    progress: Progress,
) -> None:
    """Supervised learning on the answers, in batches of like length; warm-up, then a cosine down to a tenth.

    The last word of an answer weighs as much as the whole: a reviewer's is its verdict, and one that learns only
    the average word does not learn to tell right from wrong.
    """
    pairs = sorted((encode(tokenizer, shown) for shown in demonstrations), key=lambda pair: len(pair[0]) + len(pair[1]))
    batches = [collate(pairs[start : start + BATCH], tokenizer.pad_token_id) for start in range(0, len(pairs), BATCH)]
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    order: list[int] = []
    model.train()
    for step in range(steps):
        order = order or rng.sample(range(len(batches)), len(batches))
        ids_B_T, labels_B_T = batches[order.pop()]
        pace = min(1.0, (step + 1) / 30) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * pace
        answered_B_T = labels_B_T[:, 1:] != -100
        last_N = (answered_B_T.flip(1).cumsum(1).flip(1) == 2)[answered_B_T]
        hidden_N_D = model.model(input_ids=ids_B_T).last_hidden_state[:, :-1][answered_B_T]
        loss_N = cross_entropy(model.lm_head(hidden_N_D), labels_B_T[:, 1:][answered_B_T], reduction="none")
        loss = loss_N.mean() + loss_N[last_N].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0 or step + 1 == steps:
            progress.advance(20 if (step + 1) % 20 == 0 else steps % 20, loss=round(loss.item(), 3))
    model.eval()


def encode(tokenizer: PreTrainedTokenizerFast, shown: Demonstration) -> tuple[list[int], list[int]]:
    """Prompt and answer as token ids, as a server would build them."""
    messages = [{"role": "system", "content": shown.system}, {"role": "user", "content": shown.user}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return (
        tokenizer(prompt, add_special_tokens=False)["input_ids"],
        tokenizer(shown.answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id],
    )


def collate(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Any, Any]:
    """Ids and labels, padded on the right; only answers are labelled."""
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids_B_T = torch.full((len(pairs), longest), pad)
    labels_B_T = torch.full((len(pairs), longest), -100)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids_B_T[row, :end] = torch.tensor(prompt + answer)
        labels_B_T[row, len(prompt) : end] = torch.tensor(answer)
    return ids_B_T, labels_B_T


class Lines:
    """Progress as plain lines, for a ``prepare`` that is run alone."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Another stage begins."""
        print(name, f"({total})" if total else "", flush=True)  # noqa: T201

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        """Units done."""
        print(f"  +{amount}", figures, flush=True)  # noqa: T201
