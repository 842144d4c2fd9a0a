"""What ``--help`` prints."""

import re
import subprocess
import sys

import pytest

from adaftr_fast.cli import main
from adaftr_fast.cli.app import COMMANDS
from adaftr_fast.config import RunConfig


@pytest.fixture
def shown(capsys, monkeypatch):
    """Returns a function that gives the help text of a command at a width."""

    def shown(*command, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--help"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return shown


def options(text):
    return re.findall(r"^  (--?[^\s,]+)", text, re.MULTILINE)


def test_a_line_describes_each_command(shown):
    text = shown(columns=110)
    lines = {
        words[0]: words
        for words in (line.split(maxsplit=1) for line in text.splitlines())
        if len(words) == 2
    }
    for name, command in COMMANDS.items():
        assert lines[name][1] == command.__doc__.rstrip(".")
    assert text.startswith("usage: adaftr-fast COMMAND [options]\n")


def test_the_ten_options_that_matter_come_first(shown):
    text = shown("train")
    assert text.startswith("usage: adaftr-fast train --out PATH [options]\n\nTrain one model")
    first, *others = re.split(r"\n\n(?=\S)", text)[2:]
    assert first.splitlines()[0] == "the options that matter first:"
    assert " ".join(options(first)) == (
        "--out --preset --config --data.folder --model.name --model.embedding_dim --model.tower_hidden "
        "--optimizer.lr --training.batch_size --training.max_epochs --training.device"
    )
    titles = [each.splitlines()[0] for each in others]
    expected = [
        "other options:",
        "The run to start from:",
        "The model options:",
        "The optimizer options:",
        "The training options:",
    ]
    assert titles == expected


def test_the_help_of_prepare_has_groups_and_an_example(shown):
    titles = [each.splitlines()[0] for each in re.split(r"\n\n(?=\S)", shown("prepare"))[2:]]
    assert titles == [
        "options:",
        "What to read and where to write:",
        "The roles of columns, with --labels:",
        "How fields are read, with --labels:",
        "How text is read, with --labels:",
        "How to work:",
        "Where the work is done:",
        "example:",
    ]
    assert "\n  adaftr-fast train --data data/mine --out runs/mine\n" in shown("prepare")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("prepare", "What runs the steps: local, this process, or ray, a Ray cluster that"),
        ("tune", "What trains the trials: local, this process, or ray, a Ray cluster"),
        ("daily", "What prepares a day: local, this process, or ray, a Ray cluster"),
    ],
)
def test_an_option_that_several_commands_have_says_what_it_does(shown, command, text):
    assert text in " ".join(shown(command).split())


def test_descriptions_do_not_need_docstrings(shown):
    for command in ([], ["train"]):
        text = shown(*command)  # sets the width
        words = [sys.executable, "-OO", "-m", "adaftr_fast.cli", *command, "--help"]
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == text


@pytest.mark.parametrize("command", ["train", "stream"])
def test_every_option_is_listed_once_with_its_default(shown, command):
    text = shown(command)
    listed = options(text)
    assert len(listed) == len(set(listed))
    config = RunConfig().flat()
    expected = {
        f"--{name}" for name in config if command == "train" or not name.startswith("data.")
    }
    expected.add("--model.preset")
    assert {name for name in listed if "." in name} == expected
    flat = " ".join(text.split())
    fitted = "Learning rate, gamma of Algorithm 1 (Section 3.1.4) (default: fits the log; --preset"
    assert f"{fitted} paper: 0.0005)" in flat
    assert (
        "Layer widths of each task's tower before the logit, f of Eq. 2 (default: [64, 32, 16])"
        in flat
    )
    assert "Show progress bars (default: true)" in flat
    for noise in ("(type:", "<class", "Literal", "tower_hidden+", "CONFIG", "``"):
        assert noise not in text


@pytest.mark.parametrize(("command", "columns"), [("train", 80), ("tune", 300)])
def test_lines_are_no_wider_than_the_terminal_and_than_text_is_read(shown, command, columns):
    longest = max(shown(command, columns=columns).splitlines(), key=len)
    assert len(longest) <= min(columns, 110)
