"""The matrix of frameworks: ``cell`` notes what a cell that passed ran on, ``table`` writes the tables from the notes.

Both are called by the noxfile.
"""

from __future__ import annotations

import json
import platform
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
NOTES = ROOT / ".nox" / "matrix"
BEGIN, END = "<!-- frameworks: written by `nox -s table` -->", "<!-- end of frameworks -->"
FRAMEWORKS = {
    "langchain": ("LangChain, LangGraph", "langchain", "langchain-core", "langchain.md"),
    "autogen": ("AutoGen", "autogen", "autogen-agentchat", "autogen.md"),
    "crewai": ("CrewAI", "crewai", "crewai", "crewai.md"),
    "openai_sdk": ("OpenAI Agents SDK", "openai-agents", "openai-agents", "openai-agents.md"),
}
"""Framework → title, extra, the distribution whose version counts, its page."""
NOTED = ("langchain-core", "langgraph", "autogen-agentchat", "crewai", "openai-agents", "openai")


def cell(framework: str, which: str) -> None:
    """Note that this environment passed."""
    NOTES.mkdir(parents=True, exist_ok=True)
    python = ".".join(platform.python_version_tuple()[:2])
    installed = {name: found for name in NOTED if (found := _installed(name))}
    note = {"framework": framework, "version": which, "python": python, "installed": installed}
    (NOTES / f"{framework}-{which}-{python}.json").write_text(json.dumps(note, indent=2) + "\n")


def table() -> None:
    """Put the tables between the marks in README and in docs/frameworks/README.md."""
    notes = [json.loads(path.read_text()) for path in sorted(NOTES.glob("*.json"))]
    if not notes:
        sys.exit("No cell of the matrix has passed here yet. Do: nox -s plugins plugins_on")
    for path, folder in ((ROOT / "README.md", "docs/frameworks/"), (ROOT / "docs/frameworks/README.md", "")):
        text = path.read_text()
        if BEGIN not in text or END not in text:
            sys.exit(f"{path}: the marks {BEGIN!r} and {END!r} are missing.")
        before, rest = text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        path.write_text(before + BEGIN + "\n\n" + "\n".join(_lines(notes, folder)) + "\n\n" + END + after)


def _lines(notes: list[dict], folder: str) -> list[str]:
    lines = [
        "| framework | install | supported | passed on | OpenAI SDK | Python |",
        "|---|---|---|---|---|---|",
    ]
    for framework, (title, extra, distribution, page) in FRAMEWORKS.items():
        own = [note for note in notes if note["framework"] in (framework, "all")]
        lines.append(
            f"| [{title}]({folder}{page}) | `coterie[{extra}]` | {distribution} {_range(extra, distribution)} "
            f"| {_several(note['installed'].get(distribution) for note in own)} "
            f"| {_several(note['installed'].get('openai') for note in own)} "
            f"| {_several(note['python'] for note in own)} |"
        )
    together = [note for note in notes if note["framework"] == "all"]
    if together:
        installed = together[-1]["installed"]
        versions = ", ".join(f"{name} {found}" for name, found in installed.items())
        lines += ["", f"All four in one environment: {versions}; on Python {_several(n['python'] for n in together)}."]
    return lines


def _range(extra: str, distribution: str) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["optional-dependencies"][extra])
    return next(str(one.specifier) for one in requirements if one.name == distribution)


def _several(values: object) -> str:
    found = {value for value in values if value}  # type: ignore[attr-defined]
    return ", ".join(sorted(found, key=lambda text: [int(part) for part in text.split(".")]))


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    {"cell": cell, "table": table}[sys.argv[1]](*sys.argv[2:])
