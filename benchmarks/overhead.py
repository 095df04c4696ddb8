"""What recording costs: added CPU and wall time per LLM call and per agent step, ours beside OpenInference's and AgentOps'.

python benchmarks/overhead.py [--frameworks NAME …] [--rounds N] [--runs N] [--processes N] [--long CALLS] [--json FILE]
python benchmarks/overhead.py --tables FILE … prints the tables of docs/overhead.md from such JSON files.

For each framework every instrumentor gets a process of its own, and so does the uninstrumented program, twice. All are
started together and take turns, a few runs each, in an order drawn anew each round; a figure is the median over rounds of
the difference to the uninstrumented program in the same round. The model is a ``ScriptedModel`` in this process, so its
CPU time is nobody's. Two servers are played: an ordinary one, and one that gives token ids and log-probs as vLLM does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cost.instrumentors import ATTEMPT, NOTHING, OPENINFERENCE, PEERS, instrumentors_for
from cost.records import COLUMNS
from cost.tables import tables

from coterie.testing import ScriptedModel
from coterie.testing.described_team import CALLS, team_answer

PER_RUN = {"call": 1, "team": CALLS}
"""Program → LLM calls, and agent steps, of one run."""
MEASURED = {"call": "LLM call", "team": "agent step"}
"""A step is an LLM call of an agent with what comes of it: the tool call, the delegation or hand-off, its part of the run."""
PACKAGES = (
    "openai",
    "langchain-core",
    "langgraph",
    "langchain-openai",
    "autogen-agentchat",
    "crewai",
    "openai-agents",
    "opentelemetry-sdk",
    "agentops",
    "openinference-instrumentation-langchain",
    "openinference-instrumentation-autogen-agentchat",
    "openinference-instrumentation-crewai",
    "openinference-instrumentation-openai-agents",
    "openinference-instrumentation-openai",
)
WARM_UP = 5
CHUNK = 10
"""Runs a turn in a long run."""
BOOTSTRAPS = 2_000

Key = tuple[str, str, str]
"""Program, server, instrumentor."""


class Server:
    """The scripted model, and whether it gives token ids."""

    def __init__(self) -> None:
        self.exact = False
        self.model = ScriptedModel(self._answer)

    def forget(self) -> None:
        """Let go of what it remembers of past requests."""
        self.model.requests.clear()
        self.model.written.clear()

    def _answer(self, body: dict[str, Any]) -> Any:
        if self.exact:
            body |= {"return_token_ids": True, "logprobs": True}
            if "input" in body:
                body["include"] = ["message.output_text.logprobs"]
        return team_answer(body)


class Worker:
    """A process that runs one framework with one instrumentor."""

    def __init__(self, framework: str, instrumentor: str, base_url: str) -> None:
        self.name = f"{framework} with {instrumentor}"
        command = [sys.executable, "-m", "cost.worker", framework, instrumentor, base_url]
        quiet = None if os.environ.get("OVERHEAD_LOUD") else subprocess.DEVNULL
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=quiet,
            text=True,
            # Equal hash seeds make equal dictionaries: one difference between processes less.
            env=os.environ | {"PYTHONHASHSEED": "0"},
            cwd=Path(__file__).parent,
        )

    def tell(self, do: str, **arguments: Any) -> Any:
        """Give a command and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"The process of {self.name} ended; run again with OVERHEAD_LOUD=1 to see why.")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass
class Series:
    """Milliseconds an LLM call: by round the median, and every run."""

    rounds: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)

    def add(self, seconds: Sequence[float], calls: int) -> None:
        """Add one round's runs."""
        milliseconds = [1000 * second / calls for second in seconds]
        self.rounds.append(statistics.median(milliseconds))
        self.runs.extend(milliseconds)


@dataclass
class Measured:
    """All series of one framework."""

    cpu: dict[Key, Series] = field(default_factory=dict)
    wall: dict[Key, Series] = field(default_factory=dict)

    def add(self, key: Key, answer: Mapping[str, Any]) -> None:
        """Add one turn's figures."""
        for kind, series in (("cpu", self.cpu), ("wall", self.wall)):
            series.setdefault(key, Series()).add(answer[kind], PER_RUN[key[0]])


def measure(framework: str, server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one framework."""
    names, measured, records = instrumentors_for(framework), Measured(), {}
    long: dict[str, dict[str, float]] = {}
    programs = ["call"] if framework == "openai" else ["call", "team"]
    for generation in range(options.processes):
        with ExitStack() as stack:
            workers = {name: stack.enter_context(Worker(framework, name, server.model.base_url)) for name in names}
            for name, worker in workers.items():
                for program in programs:
                    worker.tell("measure", program=program, runs=WARM_UP)
                if generation == 0:
                    records[name] = _records(worker, server, programs[-1])
            for turn in range(options.rounds):
                _say(f"{framework}: processes {generation + 1}/{options.processes}, round {turn + 1}/{options.rounds}")
                _round(workers, programs, server, measured, options.runs)
            if options.long:
                ours = {name: workers[name] for name in names if name not in PEERS}
                long = _long_run(framework, ours, programs[-1], server, options.long)
    return {
        "records": records,
        "cost": [_figures(measured, (program, kind, name)) for program in programs for kind in KINDS for name in names],
        "long": long,
    }


KINDS = {"plain": False, "token ids": True}
"""Server → whether it gives token ids and log-probs."""


def _round(
    workers: Mapping[str, Worker], programs: Sequence[str], server: Server, measured: Measured, runs: int
) -> None:
    for program in programs:
        for kind, server.exact in KINDS.items():
            for name in random.sample(list(workers), len(workers)):
                answer = workers[name].tell("measure", program=program, runs=runs * (CALLS if program == "call" else 1))
                measured.add((program, kind, name), answer)
                server.forget()


def _records(worker: Worker, server: Server, program: str) -> dict[str, int]:
    server.exact = True
    found: dict[str, int] = worker.tell("records", program=program)
    server.exact = False
    return found


def _figures(measured: Measured, key: Key) -> dict[str, Any]:
    program, kind, name = key
    base = (program, kind, NOTHING)
    cpu, cpu_base, wall, wall_base = (
        measured.cpu[key],
        measured.cpu[base],
        measured.wall[key],
        measured.wall[base],
    )
    added = [ours - theirs for ours, theirs in zip(cpu.rounds, cpu_base.rounds, strict=True)]
    added_wall = [ours - theirs for ours, theirs in zip(wall.rounds, wall_base.rounds, strict=True)]
    return {
        "per": MEASURED[program],
        "server": kind,
        "instrumentor": name,
        "cpu_ms": round(statistics.median(cpu.runs), 3),
        "cpu_ms_p95": round(_percentile(cpu.runs, 95), 3),
        "added_cpu_ms": round(statistics.median(added), 3),
        "added_cpu_ms_interval_95": _interval(added),
        "added_cpu_ms_quartiles": [round(_percentile(added, 25), 3), round(_percentile(added, 75), 3)],
        "added_cpu_ms_at_p10": round(_percentile(cpu.runs, 10) - _percentile(cpu_base.runs, 10), 3),
        "added_cpu_ms_at_p95": round(_percentile(cpu.runs, 95) - _percentile(cpu_base.runs, 95), 3),
        "ratio": round(statistics.median(cpu.runs) / statistics.median(cpu_base.runs), 3),
        "added_wall_ms": round(statistics.median(added_wall), 3),
        "rounds": len(added),
    }


def _long_run(
    framework: str, workers: Mapping[str, Worker], program: str, server: Server, calls: int
) -> dict[str, dict[str, float]]:
    """One long run each, taking turns: time a call in the first and the last tenth, and memory."""
    server.exact = True
    chunk = CHUNK * (CALLS if program == "call" else 1)
    turns = max(10, calls // (chunk * PER_RUN[program]))
    cpu: dict[str, list[float]] = {name: [] for name in workers}
    memory = {name: [worker.tell("memory")] for name, worker in workers.items()}
    for turn in range(turns):
        _say(f"{framework}: long run, {turn + 1}/{turns}")
        for name in random.sample(list(workers), len(workers)):
            answer = workers[name].tell("measure", program=program, runs=chunk, long=True)
            cpu[name] += [1000 * second / PER_RUN[program] for second in answer["cpu"]]
            server.forget()
        if turn == turns // 2:
            for name, worker in workers.items():
                memory[name].append(worker.tell("memory"))
    for name, worker in workers.items():
        memory[name].append(worker.tell("memory"))
    server.exact = False
    return {name: _growth(cpu[name], cpu[NOTHING], memory[name], turns * chunk * PER_RUN[program]) for name in workers}


def _growth(
    cpu: Sequence[float], base: Sequence[float], memory: Sequence[Mapping[str, int]], calls: int
) -> dict[str, float]:
    tenth = len(cpu) // 10
    first = statistics.median(cpu[:tenth]) - statistics.median(base[:tenth])
    last = statistics.median(cpu[-tenth:]) - statistics.median(base[-tenth:])
    _, middle, end = memory
    # The first half fills caches and pools; what still grows in the second would go on growing.
    return {
        "calls": calls,
        "cpu_ms_first_tenth": round(statistics.median(cpu[:tenth]), 3),
        "cpu_ms_last_tenth": round(statistics.median(cpu[-tenth:]), 3),
        "added_cpu_ms_first_tenth": round(first, 3),
        "added_cpu_ms_last_tenth": round(last, 3),
        "rss_mb": round(end["rss"] / 1e6, 1),
        "rss_kb_per_1000_calls": round((end["rss"] - middle["rss"]) / (calls / 2), 1),
        "objects_per_1000_calls": round(1000 * (end["objects"] - middle["objects"]) / (calls / 2), 1),
    }


def profile(framework: str, name: str, program: str, runs: int, file: Path, server: Server, exact: bool) -> None:
    """Write a cProfile of one framework with one instrumentor."""
    with Worker(framework, name, server.model.base_url) as worker:
        server.exact = exact
        worker.tell("measure", program=program, runs=WARM_UP)
        worker.tell("profile", program=program, runs=runs, file=str(file.resolve()))


def _percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _interval(values: Sequence[float]) -> list[float]:
    """A 95 % bootstrap interval of the median."""
    draw = random.Random(0)
    medians = [statistics.median(draw.choices(values, k=len(values))) for _ in range(BOOTSTRAPS)]
    return [round(_percentile(medians, 2.5), 3), round(_percentile(medians, 97.5), 3)]


def print_figures(framework: str, figures: Mapping[str, Any]) -> None:
    """The tables of one framework, as the docs have them."""
    print(f"\n### {framework}\n")
    rows = figures["cost"]
    for per in dict.fromkeys(row["per"] for row in rows):
        for kind in KINDS:
            chosen = [row for row in rows if row["per"] == per and row["server"] == kind]
            print(f"Per {per}, server: {kind}\n")
            _print_table(
                ["", "CPU ms", "added CPU ms", "95 % interval", "at p10", "at p95", "ratio", "added wall ms"],
                [
                    [
                        row["instrumentor"],
                        f"{row['cpu_ms']:.2f}",
                        f"{row['added_cpu_ms']:+.2f}",
                        "{:+.2f} to {:+.2f}".format(*row["added_cpu_ms_interval_95"]),
                        f"{row['added_cpu_ms_at_p10']:+.2f}",
                        f"{row['added_cpu_ms_at_p95']:+.2f}",
                        f"{row['ratio']:.2f}",
                        f"{row['added_wall_ms']:+.2f}",
                    ]
                    for row in chosen
                ],
            )
    print("What the spans of one run hold\n")
    _print_table(["", *COLUMNS], [[name, *map(str, found.values())] for name, found in figures["records"].items()])
    if figures["long"]:
        columns = [name for name in next(iter(figures["long"].values())) if name != "calls"]
        calls = next(iter(figures["long"].values()))["calls"]
        print(f"One run of {calls} calls\n")
        _print_table(
            ["", *columns],
            [[name, *(f"{growth[column]:g}" for column in columns)] for name, growth in figures["long"].items()],
        )


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]
    for row in (columns, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line:70s}", end="", file=sys.stderr, flush=True)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": _versions(),
        "rounds": options.rounds,
        "runs": options.runs,
        "processes": options.processes,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frameworks = sorted(OPENINFERENCE)
    parser.add_argument("--frameworks", nargs="+", choices=frameworks, default=frameworks, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each process")
    parser.add_argument(
        "--runs", type=int, default=1, help="runs of the team a turn; of the single call five times as many"
    )
    parser.add_argument("--processes", type=int, default=2, help="how often all processes are started anew")
    parser.add_argument("--long", type=int, default=2_000, help="LLM calls of the long run; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--profile", type=Path, help="write a cProfile of ours in an attempt here, and measure nothing")
    parser.add_argument(
        "--tables",
        type=Path,
        nargs="+",
        help="print the tables of these JSON files as docs/overhead.md has them, no more",
    )
    options = parser.parse_args()
    if options.tables:
        print(tables(options.tables))
        return
    server = Server()
    figures: dict[str, Any] = {}
    with server.model:
        if options.profile:
            (framework,) = options.frameworks
            program = "call" if framework == "openai" else "team"
            profile(framework, ATTEMPT, program, 200, options.profile, server, exact=True)
            return
        machine = _machine(options)
        for framework in options.frameworks:
            figures[framework] = measure(framework, server, options)
            print_figures(framework, figures[framework])
            if options.json:  # After each, since the whole takes long and may be broken off.
                options.json.write_text(
                    json.dumps({"figures": figures, "columns": COLUMNS, "machine": machine}, indent=1) + "\n"
                )
    print(json.dumps(machine))


if __name__ == "__main__":
    main()
