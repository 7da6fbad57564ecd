import pytest

from tests.report.made import make_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run that is done; tests only read it."""
    return make_run(tmp_path_factory.mktemp("runs") / "20260131-120000-lost-three")


@pytest.fixture
def again(tmp_path):
    """Make a run to change, with ``make_run``'s arguments."""

    def make(folder="20260131-130000-mine", **more):
        return make_run(tmp_path / folder, **more)

    return make
