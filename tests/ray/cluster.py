"""A Ray cluster of three nodes on this machine, of which some are killed during calls."""

import os
import time
from functools import partial
from threading import Thread

import ray
from ray.cluster_utils import Cluster

from adaftr_fast.engines import Ray

MEMORY = 80 << 20  # bytes of the object store of a node; Ray's minimum is 75 MB
SECONDS = 180  # for the call to start


class Nodes:
    """Three nodes of one CPU each, and a head that runs no calls."""

    def __init__(self):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address, self.nodes = self.cluster.address, []
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


class Killing(Ray):
    """Reads text in small blocks, and kills the node of a call of some steps of ``prepare``.

    Args:
        nodes: the cluster.
        after: the steps, and whether the call has done its work when its node is killed.
        folder: where the calls say on which node they run.
    """

    def __init__(self, nodes, after, folder):
        super().__init__()
        self.nodes = nodes
        self.after = after
        self.folder = folder

    def map(self, function, items, **options):
        step, call = function.func.__name__, in_small_blocks(function)
        if step not in self.after:
            return super().map(call, items, **options)
        folder = self.folder / step
        folder.mkdir()
        killer = Thread(target=self._kill, args=[folder])
        killer.start()
        try:
            return super().map(waiting(call, folder, self.after[step]), items, **options)
        finally:
            killer.join()

    def _kill(self, folder):
        end = time.monotonic() + SECONDS
        while not (named := list(folder.glob("node-*"))) and time.monotonic() < end:
            time.sleep(0.05)
        for path in named:
            self.nodes.kill(path.name.removeprefix("node-"))


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


def in_small_blocks(function):
    """Returns the function with blocks of 5 kB. Workers need not import this module."""

    def call(item, advance):
        from adaftr_fast.data.raw import staging

        staging.BLOCK_BYTES = 5_000
        return function(item, advance)

    return call


def waiting(function, folder, after):
    """Returns a function that waits to be killed when it is called for the first time."""

    def call(item, advance):
        try:
            os.close(os.open(folder / "first", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return function(item, advance)
        if after:
            function(item, advance)
        (folder / f"node-{ray.get_runtime_context().get_node_id()}").touch()
        time.sleep(600)

    return call


def endless(folder):
    """Writes the number of the worker's process to ``folder``, and does not end by itself."""
    (folder / f"process-{os.getpid()}").touch()
    time.sleep(600)
