"""docs/how-to/improve-prompts.md in CrewAI: the page's commands give better prompts that its program then uses, and every
optimiser tunes the page's team.
"""

from __future__ import annotations

import pytest
from tuned_orders import check_optimiser, check_page, page, serve_orders, write_folder

from coterie_trainers.prompts import optimisers

SEEDS = {
    "reader": "You are Reader. You list the quantities of an order.\nYour personal goal is: Lose nothing.",
    "clerk": "You are Clerk. You answer with the total.\nYour personal goal is: Be right.",
}


@pytest.mark.parametrize("optimiser", optimisers.names())
async def test_every_optimiser_tunes_the_team(optimiser, serve, monkeypatch, tmp_path):
    server = serve_orders(serve, monkeypatch, SEEDS)
    await check_optimiser(write_folder(tmp_path, page("CrewAI")), server, optimiser, SEEDS)


def test_the_page_leads_to_better_prompts_in_use(serve, recording, monkeypatch, tmp_path, capsys):
    serve_orders(serve, monkeypatch, SEEDS)
    written = page("CrewAI")
    check_page(written, write_folder(tmp_path, written, tests=9), monkeypatch, capsys)
