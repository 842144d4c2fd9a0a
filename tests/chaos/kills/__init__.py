"""Kills commands at random moments, completes them, and compares the results with those of
uninterrupted runs.

A case is a dictionary:

- ``command``: the name of a command of ``commands.py``;
- ``moments``: when to kill, each as a part of the duration of an uninterrupted run;
- ``victim``: what is killed of ``torchrun``;
- ``over``: whether an earlier result is to be replaced;
- ``reader``: whether another process reads the result all the time;
- ``rival``: when to start a second writer, as a part of the duration, or None.

An output in a store has no reader and no rival.
"""

from tests.chaos.kills.commands import SERVED
from tests.chaos.kills.services import are_installed

# which takes longest
COMMANDS = {"prepare": 2, "train": 2, "daily": 2, "export": 2, "predict": 2, "torchrun": 1}
CASE_SECONDS = 900.0  # until a case is ended
VICTIMS = ("rank 0", "rank 1", "ranks", "torchrun", "all")


def draw(random):
    """Makes a case."""
    weights = COMMANDS | (dict.fromkeys(SERVED, 1) if are_installed() else {})
    return {
        "command": random.choices([*weights], [*weights.values()])[0],
        "moments": [round(random.random(), 3) for _ in range(random.randint(1, 6))],
        "victim": random.choice(VICTIMS),
        "over": random.random() < 0.5,
        "reader": random.random() < 0.5,
        "rival": round(random.random(), 3) if random.random() < 0.4 else None,
    }


def check(case):
    """Raises AssertionError if a killed command does not end like an uninterrupted one; returns the
    number of kills.
    """
    from tests.chaos.kills.attempts import killed_and_completed

    return killed_and_completed(case)


def simpler(case):
    """Yields the case with fewer kills, then without one of its other processes."""
    for number in range(len(case["moments"]) if len(case["moments"]) > 1 else 0):
        yield case | {"moments": case["moments"][:number] + case["moments"][number + 1 :]}
    for name, default in (("rival", None), ("reader", False), ("over", False)):
        if case[name] != default:
            yield case | {name: default}
