"""Permits: long traces of six roles, in which the whole trace drowns the cause. In LangGraph.

Six offices look at a building, one after another, and each writes a page. The team learns only whether the permit was decided
rightly: no reward is bound to a role. What two of the offices left aside stands in their own pages, one remark among the
remarks of all.
"""

from __future__ import annotations

import random
from typing import Any, TypedDict

import coterie
from coterie.rollouts import RolloutFunction
from coterie.vocabulary import JSON, Task
from prompt_tasks.planted import Lesson, PlantedTask, Prompt, Suspicion, asked, drawn, line_of

PROMPTS = {
    "intake": "You are the intake of a permit office. Write down what shall be built.",
    "zoning": "You are the zoning expert of a permit office. Say whether the ground may be built on.",
    "safety": "You are the safety expert of a permit office. Say whether the stairs suffice.",
    "costs": "You are the costs expert of a permit office. Say what fee is due.",
    "legal": "You are the legal expert of a permit office. Say which consents are needed.",
    "head": "You are the head of a permit office. Decide.",
}
CELLARS = Lesson("safety", "Count cellar floors as floors.")
MONUMENTS = Lesson("legal", "Ask for the curator's consent in the old town.")
PHONE, NEIGHBOURS, PRICES, STAMPS = (
    "Ask for the owner's telephone number before anything else.",
    "Hear the neighbours before you answer.",
    "Reckon with rising prices.",
    "Do not decide without a stamp.",
)
REMARKS = {
    "intake": "The owner's telephone number is not known.",
    "zoning": "The neighbours were not heard.",
    "safety": "Floors below the ground were left aside.",
    "costs": "Prices were taken as they stand.",
    "legal": "The rules of the old town were left aside.",
    "head": "There is no stamp on the papers.",
}
FILLER = (
    "The papers were looked through in the order in which they came.",
    "The plans are drawn to scale and signed.",
    "Nothing else was found that bears on this office.",
    "The file goes on to the next office in the usual way.",
    "Former cases of the same street were compared.",
    "The measures agree with those of the land register.",
    "A visit on site was not called for.",
    "The fees of the last year still hold.",
)
PAGE = 14
"""Sentences of every page that say nothing."""


def answer(role: str, prompt: Prompt, told: str) -> str:
    """What each agent does under its prompt."""
    if role == "intake" and prompt.holds(PHONE):
        return "What is the owner's telephone number?"
    if role == "head" and prompt.holds(STAMPS):
        return "decision: none\nA stamp is missing."
    above, below, place = line_of(told, "above"), line_of(told, "below"), line_of(told, "place")
    cellars, monuments = prompt.holds(CELLARS), prompt.holds(MONUMENTS)
    floors = int(above or 0) + (int(below or 0) if cellars else 0)
    says = {
        "intake": f"above: {above}\nbelow: {below}\nplace: {place}",
        "zoning": "ground: may be built on",
        "safety": f"stairs: {'two' if floors > 3 else 'one'}",
        "costs": f"fee: {100 * int(above or 0)}",
        "legal": f"consents: {'curator' if monuments and place == 'old town' else 'none'}",
        "head": f"decision: stairs {line_of(told, 'stairs')}, consents {line_of(told, 'consents')}",
    }[role]
    heeded = {"safety": cellars, "legal": monuments, "zoning": prompt.holds(NEIGHBOURS), "costs": prompt.holds(PRICES)}
    remark = "" if heeded.get(role) else f"\nNote: {REMARKS[role]}"
    # The same page each time, for the same building and office.
    dice = random.Random(f"{role}{above}{below}{place}")
    return f"{says}\n{' '.join(dice.choice(FILLER) for _ in range(PAGE))}{remark}"


class File(TypedDict, total=False):
    """What goes from office to office."""

    task: Task
    pages: dict[str, str]


def team(base_url: str) -> RolloutFunction[..., object]:
    """The permit office."""
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, StateGraph

    model = ChatOpenAI(model="scripted", base_url=base_url, api_key="none", max_retries=0, timeout=60)  # type: ignore[arg-type]

    def office(role: str) -> Any:
        async def look(file: File) -> File:
            pages = file.get("pages", {})
            # The head decides on all pages; the others work from what intake wrote down.
            seen = [str(file["task"].input)] if role == "intake" else [pages["intake"]]
            if role == "head":
                seen = list(pages.values())
            answer = await model.ainvoke([("system", PROMPTS[role]), ("human", asked(role, *seen))])
            return {"pages": {**pages, role: str(answer.content)}}

        return look

    graph = StateGraph(File)
    for role in PROMPTS:
        graph.add_node(role, office(role))
    for source, target in zip([START, *PROMPTS], [*PROMPTS, END], strict=True):
        graph.add_edge(source, target)
    compiled = graph.compile()

    @coterie.rollout
    async def permits(task: Task) -> None:
        ended = await compiled.ainvoke({"task": task})
        good = line_of(ended["pages"]["head"], "decision") == task.reference
        coterie.reward(
            float(good), name="decided", explanation=None if good else f"The permit of {task.id} was decided wrongly."
        )

    return permits


def _make(dice: random.Random, _split: str, number: int) -> tuple[JSON, JSON]:
    below = dice.randint(1, 2) if number % 2 else 0
    above = dice.randint(4 - below, 3) if below else dice.choice((2, 3, 4, 5))
    place = "old town" if number % 5 < 2 else dice.choice(("harbour", "hill"))
    right = f"stairs {'two' if above + below > 3 else 'one'}, consents {'curator' if place == 'old town' else 'none'}"
    return f"above: {above}\nbelow: {below}\nplace: {place}", right


PERMITS = PlantedTask(
    name="permits",
    asks="six roles with long turns and a reward for the team alone: the whole trace drowns the cause",
    prompts=PROMPTS,
    lessons=(CELLARS, MONUMENTS),
    suspicions=(
        Suspicion(r"Floors below the ground were left aside", "safety", CELLARS.text),
        Suspicion(r"rules of the old town were left aside", "legal", MONUMENTS.text),
        Suspicion(r"telephone number is not known", "intake", PHONE),
        Suspicion(r"The neighbours were not heard", "zoning", NEIGHBOURS),
        Suspicion(r"Prices were taken as they stand", "costs", PRICES),
        Suspicion(r"There is no stamp on the papers", "head", STAMPS),
    ),
    answer=answer,
    team=team,
    tasks=drawn("permits", _make),
)
