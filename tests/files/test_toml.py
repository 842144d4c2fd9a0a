"""A configuration that is written as TOML reads as it was; tests/data/schema/test_parse.py does so
with schemas.
"""

import datetime
import tomllib

import pytest

from adaftr_fast.config import RunConfig
from adaftr_fast.errors import ConfigError
from adaftr_fast.files.toml import loads_toml, to_toml
from adaftr_fast.training.report import changed_options

CONFIG = RunConfig().with_options(
    data={"folder": "data/\U0001f600\x7f\t\\"},
    model={
        "embedding_dims": {'a "b"': 4, "": 2, "a.b": 3},
        "options": {
            "é": [1, {"x": True, "y z": {"w": [[]]}}],
            "l": [float("inf"), -float("inf")],
            "e": {},
        },
        "name": "a.b:C",
        "l2": 1e-30,
    },
    optimizer={"lr": 1e16},
    training={"checkpoint_seconds": float("inf"), "progress": False},
)


def test_a_configuration_reads_as_it_was(tmp_path):
    (tmp_path / "best.toml").write_text(to_toml(CONFIG.to_dict()), encoding="utf-8")
    assert RunConfig.from_toml(tmp_path / "best.toml") == CONFIG


def test_the_options_in_a_report_read_as_they_were(tmp_path):
    (tmp_path / "page.toml").write_text(
        changed_options(CONFIG).split("```")[1].removeprefix("toml"), encoding="utf-8"
    )
    assert RunConfig.from_toml(tmp_path / "page.toml") == CONFIG
    assert changed_options(RunConfig()) == ""


def test_keys_without_a_value_are_left_out():
    text = to_toml(
        {"a": None, "b": 1, "c": {"d": None, "e": {"f": None, "g": datetime.date(2020, 1, 2)}}}
    )
    assert tomllib.loads(text) == {"b": 1, "c": {"e": {"g": datetime.date(2020, 1, 2)}}}


@pytest.mark.parametrize("value", [[None], {"x": [{"y": [1, None]}]}, {1}])
def test_values_that_toml_lacks_are_refused(value):
    with pytest.raises(ConfigError, match=r"^TOML cannot hold (None|\{1\})$"):
        to_toml({"a": value})


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 20_000 + " = 1",
        "[" + "a." * 20_000 + "a]",
        "x = { " + "'a'." * 9_000 + "a = 1 }",
    ],
)
def test_long_keys_of_toml_are_refused_at_once(text):
    with pytest.raises(ValueError, match="nested too deeply"):
        loads_toml(text)
    assert loads_toml("[a.b]\nc.d = [" + "0.1, " * 1000 + "]")["a"]["b"]["c"]["d"][0] == 0.1


def test_a_long_word_of_toml_is_read_at_once():
    word = "a" * 300_000
    assert loads_toml(f"{word} = 1") == {word: 1}
