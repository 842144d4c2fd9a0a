"""A Ray cluster of three nodes on this machine, of which some are killed during calls."""

import os
import time
from contextlib import contextmanager
from functools import partial
from threading import Thread

import ray
from ray.cluster_utils import Cluster

from adaftr_fast.extras.ray.engine import Ray

MEMORY = 80 << 20  # bytes of the object store of a node; Ray's minimum is 75 MB
SECONDS = 180  # for the call to start


class Nodes:
    """Three nodes of one CPU each, and a head that runs no calls."""

    def __init__(self):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self.cluster.address
        self.nodes = []
        self.complete()

    def complete(self):
        """Starts as many nodes as are missing."""
        while len(self.nodes) < 3:
            self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY))

    def kill(self, node_id):
        """Kills the processes of a node with SIGKILL."""
        (node,) = [each for each in self.nodes if each.node_id == node_id]
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def connect(self):
        """Connects this process, unless it is connected."""
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")

    def disconnect(self):
        """Ends the connection of this process, if there is one."""
        ray.shutdown()

    def stop(self):
        """Ends all processes of the cluster."""
        self.disconnect()
        self.cluster.shutdown()


class Together(Ray):
    """Begins the first ``limit`` calls together: none of them ends before the last one has begun.

    Args:
        limit: how many calls are in progress at most.
        folder: where each process says that it has begun.
    """

    def __init__(self, limit, folder, **options):
        super().__init__(limit=limit, **options)
        self.begin = partial(begin_together, folder, limit)

    def map(self, function, items, **options):
        begin = self.begin  # without the engine, which workers do not need

        def call(item, advance):
            begin()
            return function(item, advance)

        return super().map(call, items, **options)


def begin_together(folder, number):
    """Returns when as many processes have called this."""
    (folder / f"begun-{os.getpid()}").touch()
    end = time.monotonic() + SECONDS
    while len(list(folder.glob("begun-*"))) < number and time.monotonic() < end:
        time.sleep(0.01)


@contextmanager
def soon(function, condition, seconds=60):
    """During the block, a thread calls a function with the value of a condition, once it is true;
    not at all after a time.
    """

    def wait():
        end = time.monotonic() + seconds
        while not (value := condition()) and time.monotonic() < end:
            time.sleep(0.02)
        if value:
            function(value)

    thread = Thread(target=wait)
    thread.start()
    yield
    thread.join()


def endless(folder):
    """Writes the number of the worker's process to ``folder``, and does not end by itself."""
    (folder / f"process-{os.getpid()}").touch()
    time.sleep(600)
