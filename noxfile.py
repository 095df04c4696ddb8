"""Every check and the demo, each in an environment of its own. ``nox -l`` lists them; ``nox`` runs what CI runs."""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "layers", "base", "tests", "plugins", "train"]
nox.options.reuse_existing_virtualenvs = True

PYTHONS = ["3.11", "3.12", "3.13"]
TRAIN_PYTHON = "3.11"
"""The pinned training stack exists for this one."""
PROJECT = nox.project.load_toml("pyproject.toml")
PLUGINS = {
    ("langchain", "oldest"): [
        "langchain-core==1.0.0",
        "langgraph==1.0.0",
        "langgraph-prebuilt==1.0.0",
        "langchain==1.0.0",
        "langchain-openai==1.0.0",
    ],
    ("langchain", "latest"): ["langchain-core", "langgraph", "langchain", "langchain-openai"],
}
TIMEOUT = ["timeout", "--kill-after=10"] if sys.platform.startswith("linux") else []


@nox.session(python=TRAIN_PYTHON)
def demo(session: nox.Session) -> None:
    """The whole loop on this machine: install, warm start, train, report. Arguments after ``--`` go to ``coterie demo``."""
    install_training_stack(session)
    session.run("coterie", "demo", *session.posargs)


@nox.session(python=TRAIN_PYTHON)
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=TRAIN_PYTHON)
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    session.install("-e", ".[langchain,train]", *group("types"), *group("test"))
    session.run("mypy")


@nox.session(python=TRAIN_PYTHON)
def layers(session: nox.Session) -> None:
    """Import-linter: who may import whom."""
    session.install("-e", ".[langchain,train]", *group("layers"))
    session.run("lint-imports")


@nox.session(python=TRAIN_PYTHON)
def base(session: nox.Session) -> None:
    """What ``pip install coterie`` alone costs: packages, disk, import time and memory, against their limits."""
    session.install(".")
    session.run("python", "tests/base_install.py")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests that need no training stack."""
    session.install("-e", ".[langchain,train]", *PLUGINS["langchain", "latest"], *group("test"))
    session.run(*TIMEOUT, *limit(900), "pytest", "-m", "not train", *session.posargs, external=True)


@nox.session(python=TRAIN_PYTHON)
@nox.parametrize("version", ["oldest", "latest"])
@nox.parametrize("framework", ["langchain"])
def plugins(session: nox.Session, framework: str, version: str) -> None:
    """A plugin's tests on the oldest and on the newest supported release of its framework."""
    session.install("-e", f".[{framework}]", *PLUGINS[framework, version], *group("test"))
    session.run(*TIMEOUT, *limit(600), "pytest", f"tests/plugins/{framework}", "-m", "not train", external=True)


@nox.session(python=TRAIN_PYTHON)
def train(session: nox.Session) -> None:
    """The tests on real verl and vLLM, on the CPU."""
    install_training_stack(session)
    session.install("--no-deps", "-r", "requirements/train-tests.txt")
    session.run(*TIMEOUT, *limit(1200), "pytest", "-m", "train", *session.posargs, external=True)


@nox.session(python=TRAIN_PYTHON)
def bench(session: nox.Session) -> None:
    """A benchmark by name: ``nox -s bench -- store --json FILE``. Never part of a verdict."""
    if not session.posargs:
        session.error(f"Name a benchmark: {', '.join(sorted(path.stem for path in Path('benchmarks').glob('*.py')))}")
    session.install("-e", ".[langchain,train]", *group("test"))
    session.run("python", f"benchmarks/{session.posargs[0]}.py", *session.posargs[1:])


def install_training_stack(session: nox.Session) -> None:
    """Coterie with verl, vLLM and torch for the CPU, from pinned lists: what they declare would pull CUDA builds."""
    try:
        session.install("--no-deps", "-r", "requirements/torch-cpu.txt")
    except nox.command.CommandFailed:
        session.log("The default index has no CPU build of torch; uv knows where they are.")
        session.install("uv")
        session.run("uv", "pip", "install", "--no-deps", "--torch-backend=cpu", "-r", "requirements/torch-cpu.txt")
    session.install("--no-deps", "-r", "requirements/verl-cpu.txt")
    session.install("--no-deps", "./trainers/vllm_cpu_metadata")
    session.install("--no-deps", "-e", ".")


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, name))


def limit(seconds: int) -> list[str]:
    """The outer time limit of a test run, where there is a ``timeout`` command."""
    return [str(seconds)] if TIMEOUT else []
