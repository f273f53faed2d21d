from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import tiny
from hypothesis import settings
from probe_sets import Command, make

from workbench.model.language_model import LanguageModel

# `make test` draws the same examples every time, so that it tells what the code does; `make test-all` looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "explore"))


@pytest.fixture(params=tiny.FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> LanguageModel:
    return tiny_model(family)


@pytest.fixture
def llama() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a tiny model and a data set for it (`probe_sets`)."""
    return make(tmp_path_factory)


@pytest.fixture
def workbench(here, monkeypatch, capsys, tmp_path) -> Command:
    """The command in this process, in `here`."""
    return Command(monkeypatch, capsys, here, tmp_path / "runs")


def tiny_model(family: str, **overrides) -> LanguageModel:
    return LanguageModel(tiny.hf_model(family, **overrides), tiny.tokenizer(), name=f"tiny-{family}")


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    from workbench.model.loading import load_model

    return load_model("smollm2-135m")


def hooks_left(model: LanguageModel) -> int:
    """How many hooks are still registered anywhere in the model."""
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(getattr(m, "_workbench_pattern_taps", []))
        for m in model.hf.modules()
    )


MUST_RUN = ("browser", "real_model")


def left_out(reporter) -> list[str]:
    """Tests of a browser or the real model that were skipped."""
    skipped = reporter.stats.get("skipped", [])
    return [r.nodeid for r in skipped if any(mark in r.keywords for mark in MUST_RUN)]


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Where nothing may be left out (continuous integration), a skipped browser or model test is a failure."""
    if os.environ.get("WORKBENCH_FORBID_SKIPS") and left_out(terminalreporter):
        names = ", ".join(left_out(terminalreporter))
        terminalreporter.write_line(f"skipped, which is not allowed here: {names}", red=True)


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("WORKBENCH_FORBID_SKIPS") and reporter and left_out(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
