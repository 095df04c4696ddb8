"""Two agents solve word problems. What makes them learn: the function at the end, and the import of coterie."""

import re

from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph

import coterie

llm = ChatOpenAI(model="gpt-4o-mini")


async def solver(state: MessagesState) -> dict:
    """Try it."""
    return {"messages": await llm.ainvoke([("system", "Solve it step by step."), *state["messages"]])}


async def checker(state: MessagesState) -> dict:
    """Have the last word."""
    check = ("user", "Check that. Answer with the right number alone.")
    return {"messages": await llm.ainvoke([*state["messages"], check])}


graph = StateGraph(MessagesState).add_sequence([solver, checker]).add_edge(START, "solver").compile()


@coterie.rollout
async def team(task: coterie.Task) -> float:
    """Run the team on one task; the reward is 1 if its last number is right."""
    state = await graph.ainvoke({"messages": [("user", task.input)]})
    return float(re.findall(r"-?\d+", state["messages"][-1].text)[-1:] == [task.reference])
