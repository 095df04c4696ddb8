"""The Ray backend on real verl, vLLM and Ray, with logical GPUs on the CPU. One cluster and one backend serve all tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from backend_parts import Answer, Caller, changed, largest_difference, reference_logprobs
from left_behind import LeftBehind
from ray_parts import HeadNode, make_ray_backend, of_the_run, rows

from coterie.errors import BackendError, ConfigError
from coterie.vocabulary import Endpoint
from coterie_trainers.backends.ray import RayBackend

pytestmark = [pytest.mark.train, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Running:
    backend: RayBackend
    endpoints: dict[str, Endpoint]
    address: str
    left_behind: LeftBehind

    def callers(self, policy: str) -> list[Caller]:
        """One a replica."""
        endpoint = self.endpoints[policy]
        bases = endpoint.replicas or (endpoint.base_url,)
        return [Caller(Endpoint(base, endpoint.model, policy)) for base in bases]

    async def answers(self, policy: str, number: int = 6) -> list[list[Answer]]:
        """Of each replica."""
        return [
            await asyncio.gather(*(caller.ask(f"say {index % 4}") for index in range(number)))
            for caller in self.callers(policy)
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    patch = pytest.MonkeyPatch()
    left_behind = LeftBehind(patch)
    head = HeadNode(Path(left_behind.temporary) / "h")
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    there = {name: name in sys.modules for name in ("torch", "ray", "verl")}
    try:
        address = head.address()
        backend = make_ray_backend(tmp_path_factory.mktemp("work"), tiny_model, address=address)
        try:
            endpoints = dict(await backend.serve())
            assert there == {name: name in sys.modules for name in there}
            yield Running(backend, endpoints, address, left_behind)
        finally:
            await backend.close()
        assert of_the_run(left_behind) == {}
    finally:
        head.stop()
        patch.undo()
    left_behind.assert_nothing()
    shutil.rmtree(left_behind.temporary)


async def test_every_replica_answers_as_the_trainer_computes(running: Running, tiny_model: Path) -> None:
    assert len(running.endpoints["pair"].replicas) == 2
    assert running.endpoints["lone"].replicas == ()
    for policy in ("pair", "lone"):
        answers = [answer for of_one in await running.answers(policy) for answer in of_one]
        assert largest_difference(answers, reference_logprobs(tiny_model, answers)) < 1e-4
        update = await running.backend.update(policy, [changed(answer.row(), policy=policy) for answer in answers])
        assert update.tokens == sum(len(answer.token_ids) for answer in answers)
        assert update.metrics["mismatch_max"] < 1e-4
        assert update.metrics["grad_norm"] == 0


async def test_two_ranks_learn_what_one_learns(running: Running, tmp_path: Path) -> None:
    both = [await running.backend.update(policy, rows(policy, 1)) for policy in ("pair", "lone")]
    assert (both[0].rows, both[0].tokens) == (both[1].rows, both[1].tokens)
    for name in ("loss", "grad_norm", "entropy", "clip_fraction", "ppo_kl", "mismatch_max", "mismatch_kl"):
        assert both[0].metrics[name] == pytest.approx(both[1].metrics[name], rel=1e-4, abs=1e-7), name
    assert both[0].metrics["grad_norm"] > 0.01
    await running.backend.save(tmp_path / "both")
    pair, lone = (_weights(tmp_path / "both" / policy / "model") for policy in ("pair", "lone"))
    assert pair.keys() == lone.keys()
    assert max(float((pair[name] - lone[name]).abs().max()) for name in pair) < 1e-5


async def test_a_row_fewer_than_ranks_is_no_matter(running: Running) -> None:
    one = await running.backend.update("pair", rows("pair", 2, count=1))
    assert one.rows == 1
    assert one.metrics["grad_norm"] > 0


async def test_published_weights_are_on_every_replica_and_of_no_other_policy(running: Running, tmp_path: Path) -> None:
    await running.backend.update("pair", rows("pair", 3))
    before = (await running.answers("pair", 1))[0][0].version
    assert await running.backend.publish("pair") == before + 1
    saved = await running.backend.save(tmp_path / "now")
    for of_one in await running.answers("pair"):
        assert {answer.version for answer in of_one} == {before + 1}
        assert largest_difference(of_one, reference_logprobs(Path(saved["models"]["pair"]), of_one)) < 1e-4
    assert {answer.version for of_one in await running.answers("lone", 1) for answer in of_one} == {0}


async def test_what_is_loaded_goes_on_bit_by_bit(running: Running, tmp_path: Path) -> None:
    await running.backend.save(tmp_path / "here")
    assert sorted(os.listdir(tmp_path / "here" / "pair" / "trainer")) == ["state-0-of-2.pt", "state-1-of-2.pt"]
    for policy in ("pair", "lone"):
        await running.backend.update(policy, rows(policy, 4))
    await running.backend.save(tmp_path / "straight")
    versions = await running.backend.load(tmp_path / "here")
    for policy in ("pair", "lone"):
        await running.backend.update(policy, rows(policy, 4))
    await running.backend.save(tmp_path / "resumed")
    for policy in ("pair", "lone"):
        places = [tmp_path / name / policy / "model" / "model.safetensors" for name in ("straight", "resumed")]
        assert places[0].read_bytes() == places[1].read_bytes()
        assert {answer.version for of_one in await running.answers(policy, 1) for answer in of_one} == {
            versions[policy]
        }


async def test_a_checkpoint_of_other_ranks_is_refused_and_changes_nothing(running: Running, tmp_path: Path) -> None:
    await running.backend.save(tmp_path / "two")
    shutil.move(tmp_path / "two" / "pair", tmp_path / "two" / "swap")
    shutil.move(tmp_path / "two" / "lone", tmp_path / "two" / "pair")
    shutil.move(tmp_path / "two" / "swap", tmp_path / "two" / "lone")
    with pytest.raises(BackendError, match=r"policy 'pair' was saved by 1 ranks and is trained by 2"):
        await running.backend.load(tmp_path / "two")
    await running.backend.update("pair", rows("pair", 5))


async def test_too_few_gpus_are_told_before_anything_starts(running: Running, tiny_model: Path, tmp_path: Path) -> None:
    before = running.left_behind.processes()
    with pytest.raises(ConfigError, match=r"ask for 6 GPUs \('pair': 2 ranks .* and the cluster has 0 free"):
        await _refused(make_ray_backend(tmp_path, tiny_model, address=running.address))
    assert running.left_behind.processes().keys() <= before.keys()


async def test_a_cluster_that_wants_its_token_is_told(
    running: Running, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"the Ray cluster wants its token \(.*no authentication token was found"):
        await _refused(make_ray_backend(tmp_path, tiny_model, address=running.address))


async def test_a_killed_rank_is_an_error(running: Running) -> None:
    """From here on each test breaks something."""
    ranks = [pid for pid, command in of_the_run(running.left_behind).items() if "ray::Rank" in command]
    assert len(ranks) == 3
    updates = [asyncio.ensure_future(running.backend.update("pair", rows("pair", 6, count=400)))]
    await asyncio.sleep(0.3)
    os.kill(_of_policy(ranks, "pair"), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(
        BackendError, match=r"the ranks of policy 'pair' failed at 'update': a process on the cluster died"
    ):
        await updates[0]
    assert time.monotonic() - began < 20


async def test_a_killed_server_is_an_error_of_the_next_publish(running: Running) -> None:
    engines = [pid for pid, command in of_the_run(running.left_behind).items() if "EngineCore" in command]
    assert len(engines) == 3
    for engine in engines:
        os.kill(engine, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(BackendError, match="the model server of policy 'lone'"):
        await running.backend.publish("lone")
    assert time.monotonic() - began < 20
    with pytest.raises(BackendError, match="cannot be used any more"):
        await running.backend.publish("lone")


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def _of_policy(ranks: list[int], policy: str) -> int:
    return next(pid for pid in ranks if f"WG_PREFIX={policy}".encode() in Path(f"/proc/{pid}/environ").read_bytes())


async def _refused(backend: RayBackend) -> None:
    try:
        await backend.serve()
    finally:
        await backend.close()
