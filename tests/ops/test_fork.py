"""Ops in a forked child, whose parent's threads were not copied: an error on several threads, and
work on one.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.ops.marks import needs_cpp_gradients

# The parent is a new process, because torch's own ops must not have started threads in it. A child
# that hangs dies.
FORKS = """
import json, threading
import torch
import adaftr_fast as af
from adaftr_fast.nn.mlp import Tower
from tests.forks import in_a_fork

torch.manual_seed(0)
torch.set_num_threads(1)  # so that torch's ops start no threads
ids = torch.randint(50, (4096, 3))
h, tau, x = torch.randn(256, 16), torch.full((256,), 0.5), torch.randn(512, 32)
embedding, tower = af.FusedEmbedding([50, 50, 50], 8), Tower(32, [64, 32])
ops = {
    "lookup": lambda: embedding(ids),
    "infonce": lambda: af.adaptive_infonce(h, h.flip(0), tau),
    "mlp": lambda: tower(x)[0][0],
}

def in_a_thread(op):
    found = []
    thread = threading.Thread(target=lambda: found.append(op()))
    thread.start()
    thread.join()
    return found[0]

def result(op, threads):
    torch.set_num_threads(threads)
    found = op()
    torch.set_num_threads(1)  # so that torch compares on one thread
    return "close" if torch.allclose(found, expected[op]) else "different"

expected = {op: op() for op in ops.values()}
found = {"before": {name: in_a_fork(lambda: result(op, 2)) for name, op in ops.items()}}
torch.set_num_threads(2)
ops["lookup"]()
found["two"] = {name: in_a_fork(lambda: result(op, 2)) for name, op in ops.items()}
found["one"] = {name: in_a_fork(lambda: result(op, 1)) for name, op in ops.items()}
found["grandchild"] = in_a_fork(lambda: in_a_fork(lambda: result(ops["lookup"], 2)))
small = lambda: embedding(ids[:2])
expected[small] = small()
found["small"] = in_a_fork(lambda: result(small, 2))
again = lambda: in_a_thread(ops["lookup"])
expected[again] = expected[ops["lookup"]]
found["new thread"] = in_a_fork(lambda: result(again, 2))
found["parent"] = {name: result(op, 2) for name, op in ops.items()}
print(json.dumps(found))
"""
REFUSED = (
    "adaftr_fast: cannot run an op on 2 threads: this process was forked after the kernels had "
    "started threads, "
    "which a fork does not copy. Start workers by spawn or forkserver, or call "
    "torch.set_num_threads(1) in them"
)


@needs_cpp_gradients  # without them a tower runs on PyTorch's own layers
def test_ops_in_a_forked_child():
    command = [sys.executable, "-c", FORKS]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    every = ("lookup", "infonce", "mlp")
    assert found["before"] == dict.fromkeys(every, "close")
    assert found["two"] == dict.fromkeys(every, REFUSED)
    assert found["one"] == dict.fromkeys(every, "close")
    assert found["grandchild"] == REFUSED
    assert found["small"] == "close"  # it takes one thread
    assert found["new thread"] == "close"  # a thread that the child starts has threads of its own
    assert found["parent"] == dict.fromkeys(every, "close")
