"""What concerns all tests: how many examples properties get, and work that need not be repeated."""

import sys

import pytest

from tests.shortcuts import take_shortcuts


def pytest_collection_finish(session: pytest.Session) -> None:
    take_shortcuts()
    if "hypothesis" in sys.modules:  # no test needs it otherwise
        from hypothesis import settings

        samples = "not sweep" in session.config.option.markexpr
        settings.register_profile("of these tests", max_examples=10 if samples else 50, deadline=None)
        settings.load_profile("of these tests")
