"""docs/how-to/improve-prompts.md in AutoGen: the page's commands give better prompts that its program then uses, and every
optimiser tunes the page's team.
"""

from __future__ import annotations

import pytest

pytest.importorskip("autogen_agentchat")
pytest.importorskip("autogen_ext")

from tuned_orders import check_optimiser, check_page, page, serve_orders, write_folder

from coterie_trainers.prompts import optimisers

SEEDS = {
    "reader": "You are the reader. List the quantities of the order.",
    "clerk": "You are the clerk. Answer with the total.",
}


@pytest.mark.parametrize("optimiser", optimisers.names())
async def test_every_optimiser_tunes_the_team(optimiser, serve, monkeypatch, tmp_path):
    server = serve_orders(serve, monkeypatch, SEEDS)
    await check_optimiser(write_folder(tmp_path, page("AutoGen")), server, optimiser, SEEDS)


def test_the_page_leads_to_better_prompts_in_use(serve, recording, monkeypatch, tmp_path, capsys):
    serve_orders(serve, monkeypatch, SEEDS)
    written = page("AutoGen")
    check_page(written, write_folder(tmp_path, written, tests=9), monkeypatch, capsys)
