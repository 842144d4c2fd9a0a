"""The feed on a simulated device, whose two streams run in every order that their events allow."""

import random
from dataclasses import dataclass, field

import pytest
import torch

from adaftr_fast.training.device import feed, to_device
from tests.training.device.test_packing import assert_same, batch

SEEDS = range(20)


@dataclass
class Stream:
    """Queued work and events to wait for; the first ``done`` of them are done."""

    queue: list = field(default_factory=list)
    done: int = 0

    def is_ready(self):
        left = self.queue[self.done : self.done + 1]
        return any(not isinstance(work, Event) or work.reached() for work in left)


@dataclass
class Event:
    device: "Device"
    stream: Stream
    position: int

    def reached(self):
        return self.stream.done >= self.position

    def synchronize(self):
        while not self.reached():
            self.device.advance()


class Device:
    """Copies of a simulated device, and its work. Memory of ``buffers`` is that of a tensor which
    queued work fills.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.copying = Stream()
        self.training = Stream()
        self.speed, self.preference = self.random.choice([0, 1, 4]), self.random.random()
        self.allocated = []

    def advance(self):
        """Does the next work of a random stream that need not wait."""
        ready = [each for each in (self.copying, self.training) if each.is_ready()]
        assert ready, "the streams wait for each other"
        stream = ready[0] if self.random.random() < self.preference else ready[-1]
        if not isinstance(work := stream.queue[stream.done], Event):
            work()
        stream.done += 1

    def push(self, stream, work):
        stream.queue.append(work)
        # the device works on while the host queues
        for _ in range(self.random.randint(0, self.speed)):
            if self.is_busy():
                self.advance()
        return Event(self, stream, len(stream.queue))

    def buffers(self, size):
        self.allocated.append(size)
        staging, buffer = torch.empty(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
        self.push(self.training, lambda: buffer.fill_(255))
        return staging, buffer

    def send(self, staging, buffer, after):
        self.push(self.copying, after)
        return self.push(self.copying, lambda: buffer.copy_(staging))

    def wait(self, event):
        self.push(self.training, event)

    def mark(self):
        return Event(self, self.training, len(self.training.queue))

    def finish(self):
        while self.is_busy():
            self.advance()

    def is_busy(self):
        return any(each.done < len(each.queue) for each in (self.copying, self.training))


def trained(device, batches):
    """Returns what the training stream read of each batch when it came to it."""
    seen = []
    for each in feed(iter(batches), device):
        device.push(device.training, lambda each=each: seen.append(each.map(torch.clone)))
    device.finish()
    return seen


def ragged():
    return [batch(rows, bags=True) for rows in (5, 7, 3, 40, 41, 2, 90, 8, 91, 1)]


def is_right(seen, batches):
    try:
        assert len(seen) == len(batches)
        for one, other in zip(seen, batches):
            assert_same(one, other)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("batches", [[batch(60 - n) for n in range(8)], ragged(), [batch(3)], []])
def test_training_reads_every_batch_whatever_the_order(batches):
    for seed in SEEDS:
        assert is_right(trained(Device(seed), batches), batches), seed


def test_buffers_are_kept_until_a_batch_is_larger():
    device = Device(0)
    trained(device, [batch(50) for _ in range(9)])
    assert len(device.allocated) == 2
    device = Device(0)
    trained(device, ragged())
    assert 2 < len(device.allocated) < 8


class NoWaitForTraining(Device):
    def send(self, staging, buffer, after):
        return self.push(self.copying, lambda: buffer.copy_(staging))


class NoWaitForTheCopy(Device):
    def wait(self, event):
        pass


class NoWaitForStaging(Device):
    def send(self, staging, buffer, after):
        copied = super().send(staging, buffer, after)
        copied.synchronize = lambda: None
        return copied


@pytest.mark.parametrize("kind", [NoWaitForTraining, NoWaitForTheCopy, NoWaitForStaging])
def test_the_simulation_notices_each_missing_wait(kind):
    batches = [batch(60 - n) for n in range(8)]
    assert not all(is_right(trained(kind(seed), batches), batches) for seed in SEEDS)


def test_the_copy_of_the_next_batch_is_queued_before_a_batch_is_yielded():
    device, batches = Device(0), [batch(10) for _ in range(4)]
    copies = [sum(map(callable, device.copying.queue)) for _ in feed(iter(batches), device)]
    assert copies == [2, 3, 4, 4]


def test_on_the_cpu_batches_pass_unchanged():
    batches = iter([batch(3)])
    assert to_device(batches, torch.device("cpu")) is batches
    assert next(to_device(batches, torch.device("meta"))).ids.is_meta
