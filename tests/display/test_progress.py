"""Progress in a log file: whole lines, and nothing of a job of less than ten seconds."""

import io
import sys

import pytest
from tqdm import tqdm

from adaftr_fast.display.progress import progress_bar


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def log(monkeypatch, capsys):
    """Does steps of three seconds each, and returns what is written to stderr."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    clock = Clock()

    def work(steps, **options):
        bar = progress_bar(total=100, desc="epoch 1", unit=" samples", **options)
        bar._time = clock
        bar.start_t = bar.last_print_t = clock.now
        with bar:
            for _ in range(steps):
                clock.now += 3
                bar.set_postfix_str("loss 0.5", refresh=False)
                bar.update(2)
                tqdm.write("a line of its own", file=sys.stderr)
        return capsys.readouterr().err

    return work


@pytest.mark.parametrize("leave", [True, False])
def test_a_log_gets_a_line_every_ten_seconds(log, leave):
    text = log(10, leave=leave)
    lines = [line for line in text.splitlines() if line.startswith("epoch 1")]
    # after 12, 24 and 30 seconds
    assert [line.split("/100")[0].split()[-1] for line in lines] == ["8", "16", "20"]
    assert all("loss 0.5" in line for line in lines)
    assert not {"\r", "\x1b"} & set(text)
    assert "\n\n" not in text
    assert text.count("a line of its own\n") == 10


def test_a_short_job_and_a_hidden_bar_write_nothing(log):
    assert "epoch 1" not in log(2)
    assert "epoch 1" not in log(10, disable=True)


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(total=2) as bar:
        bar.update()
    assert "\r" in sys.stderr.getvalue()
