"""Searches on a day of the small shop."""

import pytest

from adaftr_fast.extras.tuning.search import Search
from adaftr_fast.extras.tuning.space import parse_space
from adaftr_fast.files.toml import to_toml
from tests.runs import conftest as runs
from tests.runs.conftest import settings

prepared, tracker = runs.prepared, runs.tracker  # fixtures


SPACE = {
    "optimizer.lr": {"low": 1e-3, "high": 0.1, "log": True},
    "model.tower_hidden": {"choices": [[8, 8], [16, 8]]},
}


@pytest.fixture
def search(prepared, tmp_path):
    """Returns a function that makes a search in a folder."""
    data = prepared(1)

    def make(name="out", space=SPACE, config=None, **options):
        config = config or settings(data.folder, name="shared_bottom")
        return Search(data, config, parse_space(space, config), tmp_path / name, **options)

    return make


def search_command(folder, data, trials):
    """Returns a command that searches in a folder, where its files are."""
    base = settings(data, name="shared_bottom").with_options(training={"max_epochs": 1})
    (folder / "base.toml").write_text(to_toml(base.to_dict()))
    (folder / "space.toml").write_text('"optimizer.lr" = { low = 1e-3, high = 1e-1, log = true }\n')
    return f"tune --config base.toml --space space.toml --out out --trials {trials}".split()
