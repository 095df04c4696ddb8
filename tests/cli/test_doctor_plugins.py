"""What the doctor says about plugins: active, or why not and what to do."""

from __future__ import annotations

import importlib.metadata

import pytest
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from coterie import plugins
from coterie.cli.doctor import Status, examine
from coterie.plugins import SWITCHED_OFF, Standing, plugin_entry_points


class Fake(BaseInstrumentor):
    needs = "packaging"

    def instrumentation_dependencies(self):
        return [self.needs]

    def _instrument(self, **kwargs):
        raise AssertionError("the doctor switches nothing on")

    def _uninstrument(self, **kwargs):
        pass


class Ready(Fake):
    _instance = None


class TooOld(Fake):
    _instance = None
    needs = "packaging >= 9999"


class Missing(Fake):
    _instance = None
    needs = "no-such-framework-anywhere >= 1"


class Broken(Fake):
    _instance = None

    def __new__(cls):
        raise RuntimeError("cannot be made")


def entry(name: str, target: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, target, plugins.GROUP)


def test_each_plugin_has_its_standing_and_what_to_do(monkeypatch, tmp_path):
    found = [
        entry("coterie_ready", f"{__name__}:Ready"),
        entry("coterie_old", f"{__name__}:TooOld"),
        entry("coterie_crewai", f"{__name__}:Missing"),
        entry("coterie_broken", f"{__name__}:Broken"),
        entry("coterie_off", f"{__name__}:Ready"),
        entry("coterie_capture", f"{__name__}:Ready"),
        entry("somebody_elses", f"{__name__}:Ready"),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)
    monkeypatch.setenv(SWITCHED_OFF, "coterie_off, urllib")
    said = {finding.name: finding for finding in examine(tmp_path) if finding.area == "plugins"}

    assert {name: finding.status for name, finding in said.items()} == {
        "broken": Status.PROBLEM,
        "crewai": Status.ABSENT,
        "off": Status.WARNING,
        "old": Status.WARNING,
        "ready": Status.OK,
    }
    assert said["ready"].detail.startswith("active: packaging ")
    assert "packaging >= 9999 is needed, packaging" in said["old"].detail
    assert said["crewai"].detail == "not active: no-such-framework-anywhere >= 1 is not installed"
    assert said["crewai"].advice == 'pip install "coterie[crewai]"'
    assert "cannot be made" in said["broken"].detail
    assert SWITCHED_OFF in said["off"].detail


def test_the_four_plugins_are_installed():
    assert {point.name for point in plugin_entry_points()} == {
        "coterie_autogen",
        "coterie_crewai",
        "coterie_langchain",
        "coterie_openai_sdk",
    }


@pytest.mark.parametrize("point", plugin_entry_points(), ids=lambda point: point.name)
def test_an_installed_plugin_is_never_broken(point):
    assert plugins.examine(point).standing in (Standing.READY, Standing.ABSENT, Standing.UNSUPPORTED)
