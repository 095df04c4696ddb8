"""``LocalBackend``: starts the servers and trainers of the policies, and passes rows and weights between them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from coterie.errors import BackendError, ConfigError
from coterie.interfaces import PolicyUpdate, TrainingRow
from coterie.vocabulary import JSON, Endpoint
from coterie_trainers import config
from coterie_trainers.backends.local.device import Device, installed_device
from coterie_trainers.backends.local.groups import ServerGroup, TrainerGroup, group
from coterie_trainers.backends.local.model_folder import PROBE, require_model, require_same_tokens
from coterie_trainers.backends.local.server import ModelServer, ServerPlan
from coterie_trainers.backends.local.trainer import Trainer, TrainerPlan
from coterie_trainers.backends.local.whole_folder import whole_folder

_VERSIONS = "versions.json"
_FORMAT = 1
_Result = TypeVar("_Result")


class LocalBackend:
    """verl's engine and stock ``vllm serve`` in one process tree; implements ``coterie.interfaces.Backend``."""

    def __init__(
        self,
        policies: Mapping[str, config.Policy],
        settings: config.ModelServers,
        loss: config.Loss,
        sampling: config.Sampling,
        *,
        folder: Path,
        seed: int,
        critic: config.Critic | None = None,
    ) -> None:
        """Nothing is started before ``serve``.

        Args:
            policies: Policy name → model, roles and optimiser settings.
            settings: The section ``backend`` of the configuration.
            loss: Its section ``loss``.
            sampling: Its section ``sampling``, which the endpoints carry.
            folder: The work folder, absolute. Logs go to ``folder/logs``.
            seed: Of sampling and of the order of rows.
            critic: Its section ``critic``: each policy gets one.
        """
        self._policies = dict(policies)
        self._settings = settings
        self._loss = loss
        self._sampling = sampling
        self._folder = folder
        self._seed = seed
        self._critic = critic
        self._device = installed_device()
        self._runtime: Path | None = None
        self._groups = group(policies, folder)
        self._servers: dict[str, ModelServer] = {}
        """Policy → its server; several may share one."""
        self._trainers: dict[str, Trainer] = {}
        """Policy → its trainer; adapters may share one."""
        self._versions = {name: 0 for name, policy in policies.items() if policy.trained}
        self._changed: set[str] = set()
        """Policies whose trainer is ahead of the server."""
        self._broken: str | None = None
        # Its own threads: agents may keep the event loop's default ones busy while weights must move.
        self._threads = ThreadPoolExecutor(2 * len(self._policies) + 2, thread_name_prefix="coterie-backend")

    async def serve(self) -> Mapping[str, Endpoint]:
        """Start servers and trainers; gives policy → endpoint, ready to answer.

        Raises:
            ConfigError: verl or vLLM is not installed, a policy's model is no Hugging Face folder, or its vocabulary or
                tokens are not its tokenizer's.
            BackendError: a process ended or was not ready in time; the message ends with its last log lines.
        """
        for each in self._groups:
            for name in each.policies:
                require_model(name, each.model)
        _require_packages()
        self._runtime = Path(tempfile.mkdtemp(prefix="coterie-"))
        deadline = time.monotonic() + self._settings.start_seconds
        try:
            await self._make_room(self._runtime, deadline)
            for index, each in enumerate(self._groups):
                self._start(index, each)
            waits = [part.wait_ready for part in self._parts()]
            await self._all(*(lambda wait=wait: wait(deadline) for wait in waits))
            for name in self._versions:
                # The first transfer and the first request are slow: let them be over when the endpoint is handed out.
                await self._bring(name, 0, max(1.0, deadline - time.monotonic()))
            await self._all(*(lambda name=name: self._try_out(name) for name in self._servers))
        except BaseException:
            await self.close()
            raise
        return {name: self._endpoint(name) for name in self._policies}

    async def update(self, policy: str, rows: Sequence[TrainingRow], *, temperature: float = 1.0) -> PolicyUpdate:
        """``loss.epochs`` passes of ``loss.mini_batches`` gradient steps on these rows; the server keeps its weights.

        Args:
            policy: Which one.
            rows: At least one, all of this policy.
            temperature: At which the rows were sampled.

        Raises:
            BackendError: a row is malformed, or the trainer failed or ended.
        """
        trainer = self._trainer(policy)
        columns = _columns(policy, rows)
        whose = self._whose(policy)
        answer = await self._run(lambda: trainer.call("update", columns=columns, temperature=temperature, **whose))
        self._changed.add(policy)
        return PolicyUpdate(policy, len(rows), sum(map(sum, columns["response_mask"])), answer["metrics"])

    async def values(self, policy: str, rows: Sequence[TrainingRow]) -> Sequence[Sequence[float]]:
        """What the policy's critic makes of the state before each response token of each row.

        Raises:
            BackendError: there is no critic, a row is malformed, or the trainer failed or ended.
        """
        trainer = self._trainer(policy)
        if self._critic is None:
            raise BackendError(f"values of policy {policy!r}: there is no critic. Add the section 'critic'.")
        columns, whose = _columns(policy, rows), self._whose(policy)
        found: Sequence[Sequence[float]] = (await self._run(lambda: trainer.call("values", columns=columns, **whose)))[
            "values"
        ]
        return found

    async def publish(self, policy: str) -> int:
        """Bring the trainer's weights to the server; gives the new policy version.

        Completions wait meanwhile, except those of adapters, which change without a pause.

        Raises:
            BackendError: a process ended, or it took longer than ``backend.sync_seconds``. The backend is then of no
                further use: close it.
        """
        self._trainer(policy)
        version = self._versions[policy] + 1
        await self._bring(policy, version, self._settings.sync_seconds)
        return version

    async def save(self, folder: Path) -> Mapping[str, JSON]:
        """Write everything that ``load`` needs; ``folder`` is whole or as it was. See ``Backend.save``."""
        for name in self._versions:
            self._trainer(name)
        return await self._run(lambda: self._save(folder))

    async def load(self, folder: Path) -> Mapping[str, int]:
        """Continue from what ``save`` wrote, and bring it to the servers; gives policy → the version now served.

        The version becomes the saved one; if a later one was already published here, the next number, so that no
        version names two different weights.

        Raises:
            BackendError: the folder holds no checkpoint of these policies, or a process failed.
        """
        saved = _read_versions(folder, self._versions)
        for name in self._versions:
            await self._run(self._load_one(name, folder / name))
            version = saved[name] if saved[name] >= self._versions[name] else self._versions[name] + 1
            if version == self._versions[name] and self._policies[name].adapter:
                version += 1  # An adapter's name is never used twice.
            await self._bring(name, version, self._settings.sync_seconds)
        return dict(self._versions)

    async def close(self) -> None:
        """Stop everything; leaves no process, socket or shared memory. Safe to call twice, and after a failure."""
        self._broken = "the backend is closed"
        stops = [part.stop for part in self._parts()]
        if stops:
            with ThreadPoolExecutor(len(stops)) as stoppers:
                loop = asyncio.get_running_loop()
                await asyncio.gather(*(loop.run_in_executor(stoppers, stop) for stop in stops))
        self._servers.clear()
        self._trainers.clear()
        await self._leave_room()
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._runtime = None
        self._threads.shutdown(wait=False)

    def _start(self, index: int, servers: ServerGroup) -> None:
        """Start one server and what trains its policies."""
        assert self._runtime is not None
        label = ", ".join(servers.policies)
        as_it_is = tuple(name for name in servers.policies if name not in servers.adapters)
        whole = next((each for each in servers.trainers if each.adapter is None), None)
        server = self._start_server(
            ServerPlan(
                label,
                servers.model,
                f"ipc://{self._runtime}/trainer-{index}-0/weights" if whole else "",
                self._runtime / f"server-{index}",
                self._folder / "logs" / f"server-{_file_name(servers.policies)}.log",
                self._seed,
                self._device,
                names=as_it_is,
                adapters=len(servers.adapters),
                adapter_rank=servers.rank,
            )
        )
        self._servers |= dict.fromkeys(servers.policies, server)
        for number, trained in enumerate(servers.trainers):
            runtime = self._runtime / f"trainer-{index}-{number}"
            log = self._folder / "logs" / f"trainer-{_file_name(trained.policies)}.log"
            trainer = self._start_trainer(self._trainer_plan(servers.model, trained, runtime), runtime, log)
            self._trainers |= dict.fromkeys(trained.policies, trainer)

    def _trainer_plan(self, model: Path, trained: TrainerGroup, runtime: Path) -> TrainerPlan:
        policy = self._policies[trained.policies[0]]
        return TrainerPlan(
            policy=", ".join(trained.policies),
            model=str(model),
            weight_socket=f"ipc://{runtime}/weights",
            shared_memory=f"coterie-{secrets.token_hex(6)}",
            rendezvous=f"{runtime}/rendezvous",
            learning_rate=policy.learning_rate,
            schedule=policy.schedule.model_dump(mode="json"),
            betas=policy.betas,
            weight_decay=policy.weight_decay,
            clip_grad=policy.clip_grad,
            loss=self._loss.model_dump(mode="json"),
            horizon=self._loss.horizon or self._sampling.max_tokens,
            critic=self._critic.model_dump(mode="json") if self._critic else None,
            adapter=trained.adapter.model_dump(mode="json") if trained.adapter else None,
            policies={
                name: self._policies[name].model_dump(mode="json") for name in trained.policies if trained.adapter
            },
            max_tokens_per_pass=self._settings.max_tokens_per_pass,
            seed=self._seed,
            on_cpu=self._device is Device.CPU,
        )

    async def _make_room(self, runtime: Path, deadline: float) -> None:
        """Before anything is started: have a place for it. Here that is this machine."""

    async def _leave_room(self) -> None:
        """After everything has ended."""

    def _start_server(self, plan: ServerPlan) -> ModelServer:
        return ModelServer(plan, self._settings)

    def _start_trainer(self, plan: TrainerPlan, runtime: Path, log: Path) -> Trainer:
        trainers = sum(len(each.trainers) for each in self._groups)
        threads = max(1, len(os.sched_getaffinity(0)) // trainers)
        return Trainer(plan, device=self._device, runtime=runtime, log=log, threads=threads)

    def _parts(self) -> list[ModelServer | Trainer]:
        """Every process once."""
        return [*dict.fromkeys(self._servers.values()), *dict.fromkeys(self._trainers.values())]

    def _try_out(self, policy: str) -> None:
        """The first request of a policy: it is slow, and shows whether the server gives what training needs."""
        server, model = self._servers[policy], self._endpoint(policy).model
        server.warm_up(model, 60.0)
        folder = self._folder / self._policies[policy].model
        require_same_tokens(policy, folder, server.tokenize(model, PROBE, 60.0))

    def _endpoint(self, name: str) -> Endpoint:
        policy, sampling = self._policies[name], self._sampling
        if policy.hosted:
            key = policy.hosted.api_key
            return Endpoint(
                base_url=policy.hosted.base_url,
                model=policy.hosted.model,
                policy=name,
                roles=tuple(policy.roles),
                api_key_env=key.removeprefix("env:") if key else None,
                token_ids=False,
            )
        version = self._versions.get(name, 0)
        return Endpoint(
            base_url=self._servers[name].base_url,
            model=f"{name}@{version}" if policy.adapter else name,
            policy=name,
            version=version,
            roles=tuple(policy.roles),
            sampling={
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_tokens,
            },
        )

    def _trainer(self, policy: str) -> Trainer:
        if policy not in self._policies:
            raise BackendError(f"there is no policy {policy!r}; there are: {', '.join(sorted(self._policies))}.")
        if not self._policies[policy].trained:
            kind = "hosted" if self._policies[policy].hosted else "frozen"
            raise BackendError(f"the policy {policy!r} is {kind}: it is never trained, and has no other versions.")
        if self._broken is not None:
            raise BackendError(f"The backend cannot be used any more: {self._broken}")
        if policy not in self._trainers:
            raise BackendError("The backend is not running: call serve() first.")
        return self._trainers[policy]

    def _whose(self, policy: str) -> dict[str, Any]:
        """What a trainer of several adapters is told besides."""
        return {"policy": policy} if self._policies[policy].adapter else {}

    def _load_one(self, policy: str, folder: Path) -> Callable[[], Any]:
        trainer, whose = self._trainer(policy), self._whose(policy)
        return lambda: trainer.call("load", folder=str(folder), **whose)

    async def _bring(self, policy: str, version: int, seconds: float) -> None:
        """Let the server have what the trainer has, as this version; either's failure ends both."""
        server = self._servers[policy]
        if self._policies[policy].adapter:
            sides: list[Awaitable[Any]] = [self._run(lambda: self._bring_adapter(policy, version, seconds))]
        else:
            trainer = self._trainers[policy]
            sides = [  # The server takes and the trainer sends, at the same time.
                self._run(lambda: server.receive_weights(version, seconds)),
                self._run(lambda: trainer.call("send_weights", within=seconds, seconds=seconds)),
            ]
        tasks = [asyncio.ensure_future(side) for side in sides]
        try:
            await asyncio.wait_for(asyncio.gather(*tasks), seconds + 5)
        except BaseException as error:
            self._broken = f"bringing version {version} of policy {policy!r} to its server failed."
            for task in tasks:
                task.cancel()
            if isinstance(error, TimeoutError):
                raise server.process.failure(f"did not get version {version} within {seconds:.0f} s") from error
            raise
        self._versions[policy] = version
        self._changed.discard(policy)

    def _bring_adapter(self, policy: str, version: int, seconds: float) -> None:
        server = self._servers[policy]
        folder = server.adapters / f"{policy}@{version}"
        self._trainers[policy].call("write_adapter", within=seconds, policy=policy, folder=str(folder))
        server.load_adapter(policy, version, folder, seconds)

    def _save(self, folder: Path) -> Mapping[str, JSON]:
        began = time.monotonic()
        versions = {name: version + (name in self._changed) for name, version in self._versions.items()}
        with whole_folder(folder) as partial:
            for name, trainer in self._trainers.items():
                (partial / name).mkdir()
                trainer.call("save", folder=str(partial / name), **self._whose(name))
            (partial / _VERSIONS).write_text(json.dumps({"format": _FORMAT, "policies": versions}, indent=1))
        models = {name: str(folder / name / "model") for name in versions}
        return {"versions": versions, "models": models, "seconds": round(time.monotonic() - began, 3)}

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _all(self, *works: Callable[[], Any]) -> None:
        await asyncio.gather(*map(self._run, works))


def _columns(policy: str, rows: Sequence[TrainingRow]) -> dict[str, list[Any]]:
    """The rows as lists that JSON can carry, checked."""
    if not rows:
        raise BackendError(f"update of policy {policy!r}: no rows.")
    for number, row in enumerate(rows):
        where = f"update of policy {policy!r}: row {number} (rollout {row.rollout_id}, role {row.role})"
        if row.policy != policy:
            raise BackendError(f"{where} belongs to policy {row.policy!r}.")
        lengths = {len(row.response_ids), len(row.response_mask), len(row.rollout_logprobs), len(row.advantages)}
        lengths |= {len(column) for column in (row.rewards, row.returns) if column is not None}
        if not row.prompt_ids or len(lengths) != 1 or 0 in lengths:
            raise BackendError(
                f"{where} needs a prompt, a response, and mask, log-probs and advantages as long as the response; it "
                f"has {len(row.prompt_ids)} prompt and {len(row.response_ids)} response tokens, {len(row.response_mask)} "
                f"mask values, {len(row.rollout_logprobs)} log-probs and {len(row.advantages)} advantages."
            )
    return {
        "role": [row.role for row in rows],
        "prompt_ids": [row.prompt_ids for row in rows],
        "response_ids": [row.response_ids for row in rows],
        "response_mask": [row.response_mask for row in rows],
        "rollout_logprobs": [row.rollout_logprobs for row in rows],
        "advantages": [row.advantages for row in rows],
        "weight": [row.weight for row in rows],
        "rewards": [row.rewards for row in rows],
        "returns": [row.returns for row in rows],
    }


def _file_name(policies: Sequence[str]) -> str:
    return "+".join(policies)


def _read_versions(folder: Path, policies: Mapping[str, int]) -> dict[str, int]:
    try:
        content = json.loads((folder / _VERSIONS).read_text())
        versions = {str(name): int(version) for name, version in content["policies"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(f"{folder} is no checkpoint: {_VERSIONS} cannot be read ({error}).") from error
    if content.get("format") != _FORMAT:
        raise BackendError(f"{folder} was written in format {content.get('format')}; this version reads {_FORMAT}.")
    if set(versions) != set(policies):
        raise BackendError(
            f"{folder} holds the policies {', '.join(sorted(versions))}, but the configuration has "
            f"{', '.join(sorted(policies))}."
        )
    return versions


def _require_packages() -> None:
    missing = [name for name in ("verl", "vllm", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"backend.kind 'local' needs {' and '.join(missing)}, which is not installed. On a GPU: "
            f"pip install 'coterie[verl]' vllm. On a CPU see docs/backends.md."
        )
