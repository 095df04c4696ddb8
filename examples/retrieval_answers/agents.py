"""The team: an ordinary LangGraph program that answers questions from a local corpus. Nothing in this file knows of Coterie.

searcher ──words──▶ index ──passages──▶ answerer ──answer, citation──▶ checker ──ok──▶ done
   ▲                                                                     │
   └───────────────────────── what is missing ───────────────────────────┘  once
"""

from __future__ import annotations

import os
import re
from operator import add
from pathlib import Path
from typing import Annotated, Any, TypedDict

from corpus import Passage, index
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

SEARCHES = 2
"""How often the team may search."""
llm = ChatOpenAI(model=os.environ.get("MODEL", "gpt-4o-mini"))
"""Of ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``."""


def written_prompt(role: str) -> str:
    """A role's prompt, without the lines of YAML that an exported file begins with."""
    text = (Path(__file__).parent / "prompts" / f"{role}.md").read_text(encoding="utf-8")
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()


PROMPTS = {role: written_prompt(role) for role in ("searcher", "answerer", "checker")}


class Answer(TypedDict):
    """What the answerer says."""

    text: str
    cited: str
    """A passage's id; empty if none is cited."""


class State(TypedDict, total=False):
    """What the agents share. Each list has one entry a search, in order."""

    question: str
    queries: Annotated[list[str], add]
    found: Annotated[list[list[Passage]], add]
    answers: Annotated[list[Answer], add]
    reviews: Annotated[list[str], add]


async def ask(role: str, text: str) -> str:
    """One call of the model."""
    reply = await llm.ainvoke([("system", PROMPTS[role]), ("human", text)])
    return reply.text.strip()


async def searcher(state: State) -> dict[str, Any]:
    """Say which words to search for."""
    asked = f"Question: {state['question']}"
    if state.get("reviews"):
        asked += f"\nSearched for: {state['queries'][-1]}\nWhat is missing: {state['reviews'][-1]}"
    query = await ask("searcher", asked)
    return {"queries": [query], "found": [index().search(query)]}


async def answerer(state: State) -> dict[str, Any]:
    """Answer from the passages, and cite one."""
    passages = "\n\n".join(map(str, state["found"][-1])) or "nothing was found"
    said = await ask("answerer", f"Question: {state['question']}\n\nPassages:\n\n{passages}")
    return {"answers": [read_answer(said)]}


async def checker(state: State) -> dict[str, Any]:
    """Accept the answer, or say what is missing."""
    answer = state["answers"][-1]
    passage = index().get(answer["cited"])
    said = f"Question: {state['question']}\nAnswer: {answer['text']}\n\nCited: {passage or 'nothing'}"
    return {"reviews": [await ask("checker", said)]}


def read_answer(said: str) -> Answer:
    """An answer and its citation: lines that begin with ``ANSWER:`` and ``CITE:``; without them it is all answer."""
    answer = re.search(r"^\W*ANSWER:\s*(.*)$", said, re.MULTILINE | re.IGNORECASE)
    cited = re.search(r"^\W*CITE:\s*(\S+)", said, re.MULTILINE | re.IGNORECASE)
    return {"text": (answer[1] if answer else said).strip(), "cited": cited[1].strip("[]`*.,") if cited else ""}


def accepted(review: str) -> bool:
    """True when the checker says ok."""
    return review.strip().lower().startswith("ok")


def after_checker(state: State) -> str:
    """Done, or search once more."""
    return END if accepted(state["reviews"][-1]) or len(state["queries"]) == SEARCHES else "searcher"


builder = StateGraph(State)
builder.add_node("searcher", searcher)
builder.add_node("answerer", answerer)
builder.add_node("checker", checker)
builder.add_edge(START, "searcher")
builder.add_edge("searcher", "answerer")
builder.add_edge("answerer", "checker")
builder.add_conditional_edges("checker", after_checker, ["searcher", END])
graph = builder.compile()
