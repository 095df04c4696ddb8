"""Parts of the Ray backend by themselves: a cluster of its own, weights in buckets, and verl's own settings."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from left_behind import LeftBehind

from coterie.errors import BackendError, ConfigError

pytestmark = [pytest.mark.train, pytest.mark.timeout(120)]


def test_a_cluster_of_its_own_ends_with_its_driver(tmp_path: Path, left_behind: LeftBehind) -> None:
    code = f"""
        import tempfile, time
        from pathlib import Path
        from coterie_trainers.backends.local.device import installed_device
        from coterie_trainers.backends.ray.cluster import Cluster
        from coterie_trainers.backends.ray.placement import Placement
        runtime = Path(tempfile.mkdtemp(prefix="coterie-"))
        cluster = Cluster(
            {{"team": Placement(2, 1, 2, 1)}}, address=None, verl={{}}, device=installed_device(),
            runtime=runtime, log=Path({str(tmp_path)!r}) / "ray.log",
        )
        cluster.wait_ready(time.monotonic() + 60)
        print("there", flush=True)
        time.sleep(600)
    """
    driver = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "there\n"
    assert any("raylet" in command for command in left_behind.processes().values())
    driver.kill()
    driver.wait()
    left_behind.assert_nothing(20)


SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)


@settings(max_examples=30)
@given(st.lists(st.tuples(SHAPES, st.sampled_from(["float32", "bfloat16", "int8"])), max_size=20), st.integers(1, 400))
def test_weights_come_out_of_their_buckets_as_they_went_in(
    weights: list[tuple[tuple[int, ...], str]], limit: int
) -> None:
    import torch

    from coterie_trainers.backends.ray.buckets import buckets

    sent = {
        f"w{number}": torch.randn(shape).mul(50).to(getattr(torch, dtype))
        for number, (shape, dtype) in enumerate(weights)
    }
    parts = list(buckets(sent.items(), limit))
    taken = {name: tensor for part in parts for name, tensor in part.weights()}
    assert list(taken) == list(sent)
    for name, tensor in sent.items():
        assert (taken[name].dtype, taken[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(taken[name], tensor)
    assert all(len(part.tensors) == 1 or part.content.nbytes <= limit for part in parts)


def test_weights_that_did_not_all_arrive_are_an_error() -> None:
    import torch

    from coterie_trainers.backends.ray.buckets import buckets
    from coterie_trainers.backends.ray.replica import Arriving

    sent = {f"w{number}": torch.ones(3) for number in range(4)}
    for told in (4, 5):
        arriving = Arriving(2)
        parts = [*buckets(sent.items(), 40), told]
        feeding = threading.Thread(target=lambda parts=parts, to=arriving: [to.put(part, 5) for part in parts])
        feeding.start()
        with ThreadPoolExecutor(2) as workers:
            taken = [workers.submit(_taken, arriving, worker) for worker in range(2)]
            for one in taken:
                if told == len(sent):
                    assert one.result() == list(sent)
                else:
                    with pytest.raises(BackendError, match="4 of 5 weights arrived"):
                        one.result()
        feeding.join()


def _taken(arriving: Any, worker: int) -> list[str]:
    arriving.wait(worker, 5)
    return [name for name, _ in arriving.weights(worker, 5)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engin": {}}, "unknown key 'backend.verl.engin'. Did you mean 'engine'?"),
        (
            {"engine": {"param_ofload": True}},
            "unknown key 'backend.verl.engine.param_ofload': .* Did you mean 'param_offload'?",
        ),
        (
            {"engine": {"param_offload": "sometimes"}},
            "backend.verl.engine.param_offload = 'sometimes' is not allowed: ",
        ),
        (
            {"engine": {"qat": {"enabel": True}}},
            "unknown key 'backend.verl.engine.qat.enabel': .* Did you mean 'enable'?",
        ),
        ({"optim": {"lr": 1.0}}, "backend.verl.optim.lr is not set here: set policies.<name>.learning_rate."),
    ],
)
def test_what_verl_does_not_have_is_named(given: dict[str, Any], message: str) -> None:
    from coterie_trainers.backends.local.verl_overrides import check_overrides

    with pytest.raises(ConfigError, match=message):
        check_overrides(given)


def test_what_verl_has_gets_into_its_dataclasses() -> None:
    from verl.workers.config import FSDPEngineConfig

    from coterie_trainers.backends.local.verl_overrides import check_overrides, configured

    overrides = {"engine": {"reshard_after_forward": False, "qat": {"enable": True}}, "model": {"use_liger": False}}
    check_overrides(overrides)
    engine = configured("engine", overrides, strategy="fsdp2", reshard_after_forward=True)
    assert isinstance(engine, FSDPEngineConfig)
    assert (engine.strategy, engine.reshard_after_forward, engine.qat.enable) == ("fsdp2", False, True)
