"""The order in which the feed queues copies and waits, on streams that note it."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import torch

from adaftr_fast.training.device import feed, to_device
from tests.training.device.test_graph import bags as with_offsets
from tests.training.device.test_graph import batches


def batch(rows, *, bags=False):
    made = next(batches(1, rows))
    made = replace(made, group=torch.arange(rows), dense=torch.rand(rows, 3))
    return with_offsets(made) if bags else made


def assert_same(found, expected):
    for name in ("ids", "labels", "weight", "offsets", "dense"):
        one = getattr(found, name)
        other = getattr(expected, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name


class Stream:
    """Notes what is queued and waited for."""

    def __init__(self, name, log):
        self.name = name
        self.log = log
        self.events = 0

    def record_event(self, event=None):
        self.events += 1
        done = f"{self.name} {self.events}"
        self.log.append(done)
        return SimpleNamespace(name=done, synchronize=lambda: self.log.append(f"host: {done}"))

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event.name}")


def test_the_next_batch_is_copied_while_one_trains(monkeypatch):
    log = []
    kept = []
    copying = Stream("copy", log)
    training = Stream("step", log)
    for name, value in {
        "Stream": lambda device: copying,
        "current_stream": lambda device: training,
        "stream": lambda stream: nullcontext(),
        "Event": lambda blocking: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda part: part.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda part, stream: kept.append(stream))
    batches = [batch(rows, bags=rows == 7) for rows in (5, 7, 3, 4)]
    for number, each in enumerate(feed(iter(batches), torch.device("cpu"))):
        log.append(f"train {number}")
        assert_same(each, batches[number])
    assert kept == [training] * sum(5 if each.offsets is None else 6 for each in batches)
    assert log == [
        "step 1", "copy 1",
        "copy 2", "step waits for copy 1", "train 0", "host: step 1", "step 2",
        "copy 3", "step waits for copy 2", "train 1", "host: step 1", "step 3",
        "copy 4", "step waits for copy 3", "train 2", "host: step 2", "step 4",
        "step waits for copy 4", "train 3",
    ]  # fmt: skip


def test_on_the_cpu_batches_pass_unchanged():
    batches = iter([batch(3)])
    assert to_device(batches, torch.device("cpu")) is batches
    assert next(to_device(batches, torch.device("meta"))).ids.is_meta
