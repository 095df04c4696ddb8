"""The team: an ordinary LangGraph program. Nothing in this file knows of Coterie.

    Analyst ──plan──▶ Coder ──query──▶ Reviewer ──"<own plan> : ok"──▶ done
                        ▲                 │
                        └─"<own plan> : fix"  once

The reviewer plans the question on its own, and compares that with the query.
"""

from __future__ import annotations

from operator import add
from typing import Annotated, Any, TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

llm = ChatOpenAI(model="gpt-4o-mini", max_tokens=48)

ANALYST = "Plan the query."
CODER = "Write the SQL."
REVIEWER = "Accept or correct."


class State(TypedDict, total=False):
    """What the agents share."""

    question: str
    plans: Annotated[list[str], add]
    """The analyst's, then the reviewer's if it sent the query back."""
    queries: Annotated[list[str], add]
    """The coder's; the last is the team's answer."""
    review: str


async def ask(system: str, user: str) -> str:
    """One call of the model."""
    reply = await llm.ainvoke([("system", system), ("human", user)])
    return reply.text.strip()


async def analyst(state: State) -> dict[str, Any]:
    """Say in plain clauses what the query must do."""
    return {"plans": [await ask(ANALYST, state["question"])]}


async def coder(state: State) -> dict[str, Any]:
    """Write the latest plan as SQL."""
    return {"queries": [await ask(CODER, f"{state['question']}\n{state['plans'][-1]}")]}


async def reviewer(state: State) -> dict[str, Any]:
    """Plan on one's own, then accept the query or send it back with that plan."""
    review = await ask(REVIEWER, f"{state['question']}\n{state['queries'][-1]}")
    plan, _, _ = review.rpartition(" : ")
    return {"review": review, "plans": [plan] if sent_back(review) else []}


def sent_back(review: str) -> bool:
    """True when the reviewer wants another query; anything but a correction counts as acceptance."""
    return review.endswith(" : fix")


def after_coder(state: State) -> str:
    """The first query is reviewed, the second is final."""
    return "reviewer" if len(state["queries"]) == 1 else END


def after_reviewer(state: State) -> str:
    """Back to the coder, or done."""
    return "coder" if sent_back(state["review"]) else END


builder = StateGraph(State)
builder.add_node("analyst", analyst)
builder.add_node("coder", coder)
builder.add_node("reviewer", reviewer)
builder.add_edge(START, "analyst")
builder.add_edge("analyst", "coder")
builder.add_conditional_edges("coder", after_coder, ["reviewer", END])
builder.add_conditional_edges("reviewer", after_reviewer, ["coder", END])
graph = builder.compile()
