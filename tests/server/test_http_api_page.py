"""The page about the HTTP API: its commands run, in order, against a server, and give what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from server_parts import ServerProcess

from coterie_server.store_api.api import ROUTES

PAGE = Path(__file__).parents[2] / "docs" / "http-api.md"


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_its_commands_work(text: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 6
    with ServerProcess(tmp_path) as server:
        script = "set -euo pipefail\n" + "\necho\necho =====\n".join(blocks)
        script = script.replace("http://127.0.0.1:4747", server.address)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, (done.stdout, done.stderr)
    greeting, records, work, waiting, ends, listings, lines, resources, errors = done.stdout.split("=====")
    assert '"name":"coterie"' in greeting
    assert '"state":"queued"' in records
    assert '"held":["at-first-request-0"]' in work
    assert '"state":"succeeded"' in work
    assert '"state":"cancelled"' in waiting
    assert ends.count("event: ended") == 2
    assert "event: done" in ends
    assert '"cursor":"t1"' in listings
    assert listings.count('"span_id":"b7ad6b7169203331"') == 1
    assert lines.count('"span_id":"b7ad6b7169203331"') == 1
    said = re.findall(r'"version":(\d),.*?"status":"(\w+)"', resources)
    published, asked, marked, listed = said[:2], said[2], said[3], said[4:]
    assert published == [("1", "active"), ("2", "candidate")]
    assert (asked, marked) == (("1", "active"), ("2", "active"))
    assert listed == [("1", "retired"), ("2", "active")]
    shown = re.sub(r"\n#\s+", " ", text.split("|| true\n# ")[1].split("```")[0]).strip()
    assert errors.strip() == shown


def test_it_names_no_route_that_does_not_exist(text: str) -> None:
    paths = {route.path for route in ROUTES}
    named = set(re.findall(r"/v1/[a-z/]+", text)) | {
        "/v1" + path for path in re.findall(r'coterie_(?:get|post) "?(/[a-z/]+)', text)
    }
    assert len(named) > 10
    assert named <= paths
