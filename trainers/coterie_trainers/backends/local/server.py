"""One stock ``vllm serve``: how it is started, asked for its state, and given new weights."""

from __future__ import annotations

import http
import http.client
import json
import math
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie_trainers.backends.local.device import Device, environment
from coterie_trainers.backends.local.gate import TOKEN_VARIABLE
from coterie_trainers.backends.local.processes import GuardedProcess
from coterie_trainers.backends.local.served_adapters import KEPT
from coterie_trainers.config import ModelServers

_CPU_BLOCK_TOKENS = 128
_ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for the largest rank."""
_BASE = "the-model-under-the-adapters"
"""The name of a model that no policy plays as it is."""
_PACKAGE = "coterie_trainers.backends.local"
_SOCKET_VARIABLE = "COTERIE_WEIGHT_SOCKET"


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What one server needs to know."""

    policy: str
    """Whose it is, for messages; with ``names`` empty also the name under which the model is served."""
    model: Path
    """Its Hugging Face folder."""
    weight_socket: str
    """The address where the trainer's sender listens."""
    runtime: Path
    """A private folder for its sockets; goes with it."""
    log: Path
    seed: int
    device: Device
    host: str = "127.0.0.1"
    """The address at which it listens and answers."""
    tensor_parallel: int = 1
    """Processes that hold a part of the model each, and take weights each."""
    arguments: tuple[str, ...] = ()
    """More arguments for ``vllm serve``, before those of the configuration."""
    names: tuple[str, ...] = ()
    """The names under which the model is served as it is."""
    adapters: int = 0
    """How many policies are adapters on it."""
    adapter_rank: int = 0
    """The largest rank among these."""


class ModelServer:
    """A running ``vllm serve`` with the gate in front."""

    def __init__(self, plan: ServerPlan, settings: ModelServers) -> None:
        """Start it; ``wait_ready`` tells when it answers."""
        self._token = secrets.token_hex(16)
        self._host, self._port = plan.host, _free_port(plan.host)
        plan.runtime.mkdir(parents=True, exist_ok=True)
        self.adapters = plan.runtime / "adapters"
        """Where adapters are put for it; goes with it."""
        self.adapters.mkdir(exist_ok=True)
        variables = environment(plan.device, str(plan.runtime), threads=1)
        variables |= {TOKEN_VARIABLE: self._token, _SOCKET_VARIABLE: plan.weight_socket}
        if plan.device is Device.CPU:
            # Lets vLLM keep the "uni" executor below. The engine stays a process of its own, but no longer talks to a
            # worker process over shared memory, at which both spin: with two cores 2 to 4 times the calls a second.
            variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(_cache_gib(plan.model, settings))
        self.process = GuardedProcess(
            f"the model server of policy {plan.policy!r}",
            [sys.executable, "-m", "vllm.entrypoints.cli.main", *_arguments(plan, settings, self._port)],
            environment=variables,
            log=plan.log,
            remove=[str(plan.runtime), str(plan.runtime.parent)],
        )

    @property
    def base_url(self) -> str:
        """The OpenAI-compatible base."""
        return f"http://{self._host}:{self._port}/v1"

    def wait_ready(self, deadline: float) -> None:
        """Wait until it answers.

        Args:
            deadline: In ``time.monotonic`` seconds.

        Raises:
            BackendError: it ended, or the deadline passed.
        """
        while True:
            self.process.require_alive()
            try:
                if self._request("GET", "/health", None, 5.0)[0] == 200:
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise self.process.failure("did not answer in time (backend.start_seconds)")
            time.sleep(0.1)

    def receive_weights(self, version: int, seconds: float) -> dict[str, Any]:
        """Let it take the weights that the trainer sends meanwhile, as this version.

        Raises:
            BackendError: it ended, refused, or took longer than ``seconds``.
        """
        body = {"version": version, "seconds": seconds}
        try:
            status, answer = self._request("POST", "/coterie/weights", body, seconds)
        except OSError as error:
            time.sleep(0.5)  # A server that has just lost its engine needs a moment to end.
            self.process.require_alive()
            raise self.process.failure(f"did not take the weights of version {version}: {error!r}") from error
        if status != 200:
            raise self.process.failure(f"did not take the weights of version {version}: {answer.get('error')}")
        return answer

    def load_adapter(self, policy: str, version: int, folder: Path, seconds: float) -> dict[str, Any]:
        """Let it serve an adapter as ``policy@version`` from now on. The folder is the server's, which removes it.

        Raises:
            BackendError: it ended, refused, or took longer than ``seconds``.
        """
        body = {"policy": policy, "version": version, "folder": str(folder)}
        try:
            status, answer = self._request("POST", "/coterie/adapter", body, seconds)
        except OSError as error:
            time.sleep(0.5)  # A server that has just lost its engine needs a moment to end.
            self.process.require_alive()
            raise self.process.failure(f"did not load the adapter {policy}@{version}: {error!r}") from error
        if status != http.HTTPStatus.OK:
            raise self.process.failure(f"did not load the adapter {policy}@{version}: {answer.get('error')}")
        return answer

    def tokenize(self, model: str, text: str, seconds: float) -> list[int]:
        """The token ids that it makes of a text, without special tokens.

        Raises:
            BackendError: it does not say.
        """
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        try:
            status, answer = self._request("POST", "/tokenize", body, seconds)
        except OSError as error:
            raise self.process.failure(f"did not tokenize a probe: {error!r}") from error
        if status != http.HTTPStatus.OK or "tokens" not in answer:
            raise self.process.failure(f"did not tokenize a probe: {answer.get('error')}")
        return list(answer["tokens"])

    def warm_up(self, model: str, seconds: float) -> None:
        """Make the first request, which is slower than those after it. A model without chat template is no error.

        Raises:
            BackendError: it failed, or its answer lacks the token ids or log-probs that training needs.
        """
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "logprobs": True}
        try:
            status, answer = self._request("POST", "/v1/chat/completions", body | {"return_token_ids": True}, seconds)
        except OSError as error:
            raise self.process.failure(f"did not answer the first request: {error!r}") from error
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise self.process.failure(f"failed at the first request: {answer.get('error')}")
        if status == http.HTTPStatus.OK and (missing := lacks(answer)):
            raise self.process.failure(
                f"answers without {' and '.join(missing)}, which training needs; look at backend.server_args"
            )

    def stop(self) -> None:
        """End it. Safe to call twice."""
        self.process.stop()

    def _request(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        try:
            headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        try:
            return answer.status, dict(json.loads(text or "{}"))
        except ValueError:
            return answer.status, {"error": text.decode(errors="replace")[:500]}


def lacks(answer: Mapping[str, Any]) -> list[str]:
    """What training needs and a chat completion does not have."""
    choice = answer["choices"][0]
    there = {
        "prompt_token_ids": answer.get("prompt_token_ids"),
        "token_ids": choice.get("token_ids"),
        "logprobs": (choice.get("logprobs") or {}).get("content"),
    }
    return [name for name, value in there.items() if not value]


def _arguments(plan: ServerPlan, settings: ModelServers, port: int) -> list[str]:
    common = ["serve", str(plan.model), "--host", plan.host, "--port", str(port)]
    common += ["--served-model-name", *(plan.names or (_BASE if plan.adapters else plan.policy,))]
    common += ["--max-model-len", str(settings.max_model_len), "--max-num-seqs", str(settings.max_num_seqs)]
    common += ["--seed", str(plan.seed), "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    common += ["--worker-extension-cls", f"{_PACKAGE}.weight_receiver.WeightReceiver"]
    common += ["--middleware", f"{_PACKAGE}.gate.PolicyGate"]
    common += ["--disable-uvicorn-access-log", "--disable-log-stats"]
    if plan.device is Device.CPU:
        common += ["--dtype", "float32", "--enforce-eager", "--distributed-executor-backend", "uni"]
        common += ["--num-gpu-blocks-override", str(_cache_blocks(settings))]
    else:
        # The trainer shares the GPU, so vLLM's default of nine tenths of its memory would leave it none.
        common += ["--gpu-memory-utilization", "0.4"]
    if plan.adapters:
        served = KEPT * plan.adapters + 1
        rank = next((rank for rank in _ADAPTER_RANKS if rank >= plan.adapter_rank), plan.adapter_rank)
        common += ["--enable-lora", "--max-loras", str(served), "--max-cpu-loras", str(served + plan.adapters)]
        common += ["--max-lora-rank", str(rank)]
    return [*common, *plan.arguments, *settings.server_args]


def _cache_blocks(settings: ModelServers) -> int:
    """Room for every concurrent sequence at full length."""
    return settings.max_num_seqs * math.ceil(settings.max_model_len / _CPU_BLOCK_TOKENS) + 1


def _cache_gib(model: Path, settings: ModelServers) -> int:
    """The key-value cache's size in GiB, rounded up: what vLLM may take."""
    shape = json.loads((model / "config.json").read_text())
    shape = shape.get("text_config", shape)
    heads = shape.get("num_key_value_heads") or shape.get("num_attention_heads") or shape.get("n_head") or 1
    layers = shape.get("num_hidden_layers") or shape.get("n_layer") or 1
    hidden = shape.get("hidden_size") or shape.get("n_embd") or 1
    width = shape.get("head_dim") or hidden // (shape.get("num_attention_heads") or shape.get("n_head") or 1)
    bytes_a_token = 2 * 4 * layers * heads * width
    return max(1, math.ceil(_cache_blocks(settings) * _CPU_BLOCK_TOKENS * bytes_a_token / 2**30))


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
