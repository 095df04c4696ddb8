"""Where a run's things lie, and what to run next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.vocabulary import RunState
from coterie_trainers.report.figures import Figures


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything lies; None for what does not."""

    store: str
    """The store's address."""
    work: Path | None
    """The work folder."""
    page: Path | None
    """The report as a page."""

    @property
    def checkpoints(self) -> Path | None:
        """The folder of checkpoints, if there is one."""
        return self._in_work("checkpoints")

    @property
    def logs(self) -> Path | None:
        """The folder of the model servers' and trainers' logs, if there is one."""
        return self._in_work("logs")

    def _in_work(self, name: str) -> Path | None:
        path = self.work / name if self.work else None
        return path if path is not None and path.is_dir() else None


def listed_places(figures: Figures, places: Places) -> Sequence[tuple[str, str]]:
    """What lies where, in the order in which it is shown."""
    found = [
        ("report", places.page),
        ("store", places.store),
        *((f"model {model.policy}", model.path) for model in figures.models),
        ("checkpoints", places.checkpoints),
        ("logs", places.logs),
    ]
    return [(name, str(path)) for name, path in found if path]


def next_commands(figures: Figures, places: Places) -> Sequence[tuple[str, str]]:
    """Commands worth running next, each with what it does."""
    run = figures.run
    commands: list[tuple[str, str]] = []
    again = _train_command(figures, places)
    if run.state is not RunState.SUCCEEDED:
        commands.append((again or "the same command again", "goes on from the last step"))
    where = ["--out", str(places.work)] if places.work else ["--store", places.store]
    commands.append((shlex.join(["coterie", "report", run.id, *where]), "shows this again"))
    if run.state is RunState.SUCCEEDED:
        commands += [(_serve_command(model.policy, model.path), f"serves {model.policy}") for model in figures.models]
        if again:
            seed = run.config.get("seed", 0)
            other = int(seed) + 1 if isinstance(seed, int | float | str) else 1
            commands.append((f"{again} --seed {other} --out seed-{other}", "trains from another seed"))
            commands.append((again.partition(" && ")[0], "has the program, the tasks and the settings: change them"))
    return commands


def _serve_command(policy: str, path: str) -> str:
    """How vLLM serves a policy; an adapter is served on its model."""
    settings = Path(path) / "adapter_config.json"
    if not settings.is_file():
        return shlex.join(["vllm", "serve", path])
    adapter = json.loads(settings.read_text())
    options = ["--enable-lora", "--max-lora-rank", str(adapter["r"]), "--lora-modules", f"{policy}={path}"]
    return shlex.join(["vllm", "serve", adapter["base_model_name_or_path"], *options])


def _train_command(figures: Figures, places: Places) -> str | None:
    """How the run was started, where the folder above the work folder shows it."""
    app = figures.run.config.get("app")
    if places.work is None or not isinstance(app, str):
        return None
    folder = places.work.parent
    if not (folder / app.rpartition(":")[0]).is_file() or not (folder / "config.yaml").is_file():
        return None
    return f"cd {shlex.quote(str(folder))} && {shlex.join(['coterie', 'train', app, 'config.yaml'])}"
