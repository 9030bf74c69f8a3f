"""What concerns all tests: how many examples properties get, and work that need not be repeated."""

import functools

import pytest

from tests.python_process import start_server
from tests.shortcuts import take_shortcuts


def pytest_configure(config: pytest.Config) -> None:
    # of several processes each has one, but for that which only distributes the tests
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        start_server()


def pytest_collectstart(collector: pytest.Collector) -> None:
    _limit_examples("not sweep" in collector.config.option.markexpr)


@functools.cache
def _limit_examples(sampled: bool) -> None:
    # not before: where tests are only distributed, nothing is collected, and importing this takes a second
    from hypothesis import settings

    settings.register_profile("of these tests", max_examples=10 if sampled else 100, deadline=None)
    settings.load_profile("of these tests")


@pytest.fixture(scope="module", autouse=True)
def _shortcuts() -> None:
    take_shortcuts()  # for each module, since the tests before it have imported more


@pytest.fixture
def unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the rehearsal before training, where a test counts or replaces what the query calls."""
    monkeypatch.setattr("lightning_al.acquisition.contract.rehearse", lambda *arguments: None)
