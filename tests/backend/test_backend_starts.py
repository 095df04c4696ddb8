"""Starts, ends and restarts of the local backend: each test starts processes of its own."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from backend_parts import Caller, make_backend
from left_behind import LeftBehind

from coterie.errors import BackendError, ConfigError
from coterie.interfaces import TrainingRow

pytestmark = [pytest.mark.train, pytest.mark.timeout(240)]


def rows(seed: int) -> list[TrainingRow]:
    """Rows that no policy has sampled; good enough to move weights."""
    source = random.Random(seed)
    made = []
    for _ in range(11):
        prompt = tuple(source.randrange(3, 100) for _ in range(source.randint(3, 20)))
        response = tuple(source.randrange(3, 100) for _ in range(source.randint(2, 12)))
        same = len(response)
        advantage = source.gauss(0, 1)
        made.append(
            TrainingRow(
                "team", "ro", "writer", ("c",), prompt, response, (1,) * same, (-4.5,) * same, (advantage,) * same
            )
        )
    return made


async def test_a_fresh_process_continues_bit_by_bit_and_a_killed_engine_is_an_error(
    tiny_model: Path, tmp_path: Path, left_behind: LeftBehind
) -> None:
    first = make_backend(tmp_path / "one", tiny_model)
    try:
        await first.serve()
        await first.update("team", rows(1))
        await first.update("team", rows(2))
        await first.publish("team")
        await first.save(tmp_path / "after-2")
        await first.update("team", rows(3))
        await first.save(tmp_path / "straight")
    finally:
        await first.close()
    left_behind.assert_nothing(5)

    second = make_backend(tmp_path / "two", tiny_model)
    try:
        caller = Caller((await second.serve())["team"])
        await second.load(tmp_path / "after-2")
        assert (await caller.ask("hello")).version == 1
        await second.update("team", rows(3))
        await second.save(tmp_path / "resumed")
        weights = [(tmp_path / name / "team/model/model.safetensors").read_bytes() for name in ("straight", "resumed")]
        assert weights[0] == weights[1]

        engine = next(pid for pid in left_behind.processes() if _is_engine(pid))
        os.kill(engine, signal.SIGSTOP)
        publishing = asyncio.create_task(second.publish("team"))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        os.kill(engine, signal.SIGKILL)
        with pytest.raises(BackendError, match="the model server of policy 'team'"):
            await publishing
        assert time.monotonic() - began < 10
    finally:
        await second.close()
    left_behind.assert_nothing(5)


def _is_engine(pid: int) -> bool:
    return "EngineCore" in Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()


def test_nothing_is_left_of_a_driver_that_is_killed(tiny_model: Path, tmp_path: Path, left_behind: LeftBehind) -> None:
    code = f"""
        import asyncio, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from backend_parts import make_backend
        async def main():
            await make_backend(Path({str(tmp_path)!r}), Path({str(tiny_model)!r})).serve()
            assert "torch" not in sys.modules and "verl" not in sys.modules
            print("serving", flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """
    driver = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "serving\n"
    assert len(left_behind.processes()) > 4
    driver.kill()
    driver.wait()
    left_behind.assert_nothing(15)


async def test_a_path_without_model_is_a_configuration_error(tmp_path: Path, left_behind: LeftBehind) -> None:
    backend = make_backend(tmp_path, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"policies\.team\.model: .*nowhere is no Hugging Face folder"):
        await backend.serve()
    await backend.close()
    left_behind.assert_nothing(1)


async def test_a_broken_model_is_an_error_with_the_last_log_lines(
    tiny_model: Path, tmp_path: Path, left_behind: LeftBehind
) -> None:
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    (broken / "config.json").write_text('{"model_type": "unheard_of"}')
    backend = make_backend(tmp_path, broken)
    with pytest.raises(
        BackendError, match=r"ended with exit code 1\. Its log is .*\n.*unheard_of|last lines"
    ) as raised:
        await backend.serve()
    assert "unheard_of" in str(raised.value)
    left_behind.assert_nothing(5)
