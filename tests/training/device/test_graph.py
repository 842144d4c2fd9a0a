"""When steps are captured, replayed and run eagerly, with captures that a replay calls again."""

import copy
import functools
import warnings
import weakref
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from unittest.mock import MagicMock

import pytest
import torch

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.config.model import MODELS
from adaftr_fast.errors import DivergedError
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.nn.deferred import stored
from adaftr_fast.training.device import (
    BackwardGraph,
    CpuCaptures,
    CudaCaptures,
    depends_on_tensors_alone,
)
from adaftr_fast.training.optimizers import TABLES
from adaftr_fast.training.stepper import Stepper
from tests.models.inputs import batch
from tests.tolerances import assert_same_bits

SIZES = [50, 20, 3]
ROWS = 16
WARM_UP = CudaCaptures.warm_up
OPTIMIZERS = list(TABLES)


class Recorder:
    """Captures by calling. As with a graph, a capture computes nothing and a replay writes into its
    tensors.
    """

    warm_up = CudaCaptures.warm_up
    keeps_addresses = True

    def __init__(self):
        self.log = []

    def aside(self, work):
        self.log.append("aside")
        return work()

    def capture(self, work, reads):
        self.log.append("capture")
        terms, gradients = work()
        parameters = [each for each in reads if isinstance(each, torch.nn.Parameter)]

        def replay(_):
            self.log.append("replay")
            for parameter in parameters:
                parameter.grad = None
            found, latest = work()
            for gradient, now in zip(gradients, latest, strict=True):
                gradient.copy_(now)
            for name, value in found.items():
                terms[name].copy_(value)
            return terms, gradients

        for value in (*terms.values(), *(g._values() if g.is_sparse else g for g in gradients)):
            value.fill_(torch.nan)
        return replay, (terms, gradients)


def batches(count, rows=ROWS, weight=True):
    for seed in range(count):
        yield batch(rows, seed=seed, weighted=weight, dtype=torch.float32, sizes=SIZES)


def bags(content):
    return replace(
        content, ids=content.ids.flatten(), offsets=torch.arange(content.ids.numel() + 1)
    )


def stepper(name="mmoe", tables="adam", clip_norm=0.0, model=None, **config):
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(name=name, **(model or {})), SIZES, ["click", "conversion"]
    ).train()
    optimizer = OptimizerConfig(lr=0.01, tables=tables, clip_norm=clip_norm)
    return Stepper(model, optimizer, TrainingConfig(batch_size=ROWS, **config))


def graphed(*arguments, **config):
    own = stepper(*arguments, **config)
    own.graph = BackwardGraph(own.model, ROWS, Recorder())
    return own, own.graph.captures.log


def trained(own, content, flush_after=(), epoch_steps=50):
    """Takes a step per batch; returns the terms, and the weights with deferred updates
    as they are.
    """
    terms = []
    for number, each in enumerate(content, start=1):
        terms.append(own.step(each, number, (number - 1) / epoch_steps))
        if number in flush_after:  # as validation does
            own.model.eval()
            own.model.train()
    return terms, [stored(parameter).clone() for parameter in own.model.parameters()]


@pytest.mark.parametrize(
    ("name", "tables", "balance"),
    [
        ("adaftr", "adam", "none"),
        ("mmoe", "lazy_adam", "none"),
        ("adaftr", "adagrad", "none"),
        ("mmoe", "rowwise_adagrad", "none"),
        ("mmoe", "sgd", "uncertainty"),
    ],
)
def test_replayed_steps_equal_eager_steps(name, tables, balance):
    content = list(batches(30))
    own, log = graphed(name, tables, balance=balance)
    terms, weights = trained(own, content, [20])
    assert_same_bits(
        (terms, weights), trained(stepper(name, tables, balance=balance), content, [20])
    )
    # the first step and the one after validation: no updates are deferred
    eager = 2 if tables == "adam" else 0
    assert log == ["aside"] * WARM_UP + ["capture"] + ["replay"] * (30 - WARM_UP - eager)
    # the terms of a step outlast the next
    assert len({each["click"].item() for each in terms}) == 30


def test_a_falling_beta_is_part_of_the_graph_until_the_contrast_ends():
    content = list(batches(20))
    options = {"model": {"contrast_epochs": 1.5}}
    own, log = graphed("adaftr", "sgd", **options)
    one = trained(own, content, epoch_steps=8)
    assert_same_bits(one, trained(stepper("adaftr", "sgd", **options), content, epoch_steps=8))
    contrasts = [terms.get("contrast") for terms in one[0]]
    assert all(each is not None for each in contrasts[:12])
    assert contrasts[12:] == [None] * 8
    captured = ["capture"] + ["replay"] * (12 - WARM_UP)
    assert log == ["aside"] * WARM_UP + captured + ["capture"] + ["replay"] * 8


def test_the_graph_is_captured_anew_when_the_optimizer_replaces_its_state():
    content = list(batches(80))
    own, log = graphed()
    series = []
    step = own.step
    (weight,) = own.optimizers[-1]._weights()

    def watched(*arguments):
        if state := own.optimizers[-1].state.get(weight):  # which begins with the first step
            series.append(state.own.tensors[2].data_ptr())
        return step(*arguments)

    own.step = watched
    assert_same_bits(trained(own, content), trained(stepper(), content))
    changes = sum(one != other for one, other in pairwise(series))
    assert changes >= 1
    assert log.count("capture") == 1 + changes
    assert log.count("replay") == 80 - 1 - WARM_UP


def test_other_batches_run_eagerly():
    regular = list(batches(8))
    other = [*batches(1, rows=5), bags(regular[0]), *batches(1, weight=False)]
    content = [*other[:2], *regular, *other, *regular[:2]]
    own, log = graphed(tables="lazy_adam")
    assert_same_bits(trained(own, content), trained(stepper(tables="lazy_adam"), content))
    assert log == ["aside"] * WARM_UP + ["capture"] + ["replay"] * (10 - WARM_UP)


def test_a_capture_that_fails_warns_once_and_steps_run_eagerly():
    content = list(batches(12))
    own, log = graphed()

    def refuse(work, reads):
        log.append("refused")
        work()  # leaves gradients behind
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    own.graph.captures.capture = refuse
    with pytest.warns(RuntimeWarning) as caught:
        found = trained(own, content)
    expected = (
        "training.graph: steps run eagerly, because the capture failed: operation not permitted "
        "when stream is"
    )
    assert [str(each.message) for each in caught] == [f"{expected} capturing"]
    assert_same_bits(found, trained(stepper(graph="off"), content))
    assert log == ["aside"] * WARM_UP + ["refused"]


class FakeCuda:
    """What ``CudaCaptures`` calls of torch, as torch 2.11 behaves; ``log`` has what happens to the
    pool.
    """

    def __init__(self, monkeypatch, ends_itself):
        self.log = []
        self.capturing = False
        self.ends_itself = ends_itself
        cuda = MagicMock(graph=self.graph, CUDAGraph=type("Graph", (), {"replay": None}))
        monkeypatch.setattr(torch, "cuda", cuda)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(
            torch._C,
            "_cuda_releasePool",
            lambda index, pool: self.log.append("released"),
            raising=False,
        )

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.capturing = True
        try:
            yield
        except RuntimeError:
            self.capturing = not self.ends_itself
            raise
        self.capturing = False

    def end(self, index, pool):
        if not self.capturing:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.capturing = False
        self.log.append("ended")


@pytest.mark.parametrize("ends_itself", [False, True], ids=["torch 2.11", "torch 2.12"])
def test_a_capture_that_fails_ends_its_allocations(ends_itself, monkeypatch):
    cuda = FakeCuda(monkeypatch, ends_itself)
    captures = CudaCaptures(torch.device("cuda", 0))

    def reads():
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        captures.capture(reads)
    assert not cuda.capturing
    assert cuda.log == ([] if ends_itself else ["ended", "released"])


def test_a_graph_is_kept_until_the_next_is_captured(monkeypatch):
    FakeCuda(monkeypatch, True)
    captures = CudaCaptures(torch.device("cuda", 0))
    captures.capture(lambda: None)
    first = weakref.ref(captures._graph)
    _, is_kept = captures.capture(lambda: first() is not None)
    assert is_kept
    assert first() is None


def test_bfloat16_steps_cast_weights_within_the_graph(monkeypatch):
    """autocast keeps cast weights unless it is told not to, and a graph would read those of the
    capture.
    """
    options = []
    autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda *a, **k: options.append((a, k)) or autocast(*a, **k)
    )
    own = stepper(precision="bfloat16")
    content = next(batches(1))
    own.step(content, 1)
    own.device = torch.device("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch disables autocast for a GPU that is not there
        own.step(content, 2)
    kind, choices = zip(*options)
    assert kind == (("cpu", torch.bfloat16), ("cuda", torch.bfloat16))
    assert choices == tuple({"enabled": True, "cache_enabled": cache} for cache in (None, False))


def test_which_steps_are_graphed(monkeypatch):
    made = []
    monkeypatch.setattr(
        "adaftr_fast.training.stepper.CudaCaptures", lambda device: made.append(device) or Recorder
    )
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    monkeypatch.setattr("adaftr_fast.training.stepper._device", torch.device)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr("adaftr_fast.training.stepper.has_cuda_kernels", lambda: False)
    assert stepper(device="cuda:1").graph is None  # look-ups of the references read from the device
    monkeypatch.setattr("adaftr_fast.training.stepper.has_cuda_kernels", lambda: True)
    assert isinstance(stepper(device="cuda:1").graph, BackwardGraph)
    assert made == [torch.device("cuda:1")]
    for config in ({"graph": "off"}, {"accumulate": 2}, {"compile": True}):
        for device in ("cuda", "cpu"):
            assert stepper(**{"device": device} | config).graph is None, config
    assert isinstance(stepper().graph.captures, CpuCaptures)


def test_only_models_of_this_package_without_hooks_are_graphed(model):
    own = build_model(ModelConfig(), SIZES, ["click", "conversion"])
    assert depends_on_tensors_alone(own)
    assert not depends_on_tensors_alone(model)  # its class is that of a test
    layer = own.backbone.gates
    for register in (layer.register_forward_hook, layer.weight.register_hook):
        handle = register(lambda *_: None)
        assert not depends_on_tensors_alone(own)
        handle.remove()
    assert depends_on_tensors_alone(own)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "linear"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_programs_on_the_cpu_equal_eager_steps(name, precision):
    # the record of Adam's steps, which is the same for all models, grows after 64
    content = list(batches(70 if name == "mmoe" else 20))
    one = stepper(name, precision=precision)
    captures = MagicMock(wraps=one.graph.captures, warm_up=3, keeps_addresses=False)
    one.graph.captures = captures
    found = trained(one, content, [12])
    captures.capture.assert_called_once()
    assert not one.graph._failed
    assert_same_bits(found, trained(stepper(name, precision=precision, graph="off"), content, [12]))


@pytest.mark.parametrize("graph", ["auto", "off"])
def test_a_table_that_grows_between_steps_trains_on(graph, monkeypatch):
    """As in a stepper that is made after it has grown, with the optimizers of the one before."""
    monkeypatch.setattr(CpuCaptures, "warm_up", 3)
    one, grown = (stepper("mmoe", "sgd", clip_norm=0.5, graph=graph) for _ in range(2))
    trained(one, batches(6))
    for each in (one, grown):
        each.model.embedding.grow(0, SIZES[0] + 2)
    grown.model.load_state_dict(one.model.state_dict())
    other = Stepper(grown.model, grown.settings, grown.config)
    for ours, theirs in zip(other.optimizers, one.optimizers, strict=True):
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    content = [replace(each, ids=each.ids + torch.eye(3).int()[0] * 2) for each in batches(8)]
    assert max(each.ids[:, 0].max() for each in content) >= SIZES[0]  # the new rows
    assert_same_bits(trained(one, content), trained(other, content))
    if graph == "auto":
        assert one.graph._graph is not None


def test_programs_on_the_cpu_read_the_falling_beta():
    content = list(batches(20))
    options = {"model": {"contrast_epochs": 1.5}, "balance": "uncertainty"}
    own = stepper("adaftr", "sgd", **options)
    own.graph.captures.warm_up = 3
    one = trained(own, content, epoch_steps=8)
    assert own.graph._graph is not None
    assert_same_bits(
        one, trained(stepper("adaftr", "sgd", graph="off", **options), content, epoch_steps=8)
    )


def test_a_layer_that_is_frozen_meanwhile_stays():
    content = list(batches(12))
    own = stepper(tables="sgd")
    own.graph.captures.warm_up = 3
    trained(own, content[:6])
    assert own.graph._graph is not None
    frozen = own.model.towers[0].requires_grad_(False)
    before = [parameter.clone() for parameter in frozen.parameters()]
    trained(own, content[6:])
    assert own.graph._graph is not None
    assert_same_bits(list(frozen.parameters()), before)


def test_an_error_within_a_replay_names_what_an_eager_step_names():
    own = stepper()
    own.graph.captures.warm_up = 3
    *regular, last = batches(7)
    trained(own, regular)
    with pytest.raises(IndexError, match="out of range for field 0"):
        own.step(replace(last, ids=last.ids + 25), 7)
    with pytest.raises(DivergedError, match=r"loss is not finite"):
        own.step(replace(last, labels=last.labels * torch.inf), 7)


def test_a_replay_that_fails_is_named_as_one():
    content = list(batches(8))
    own = stepper()
    own.graph.captures.warm_up = 3
    trained(own, content[:6])
    assert own.graph._graph.inputs is None  # a program reads the batch that it is given

    def refuse(reads):
        raise RuntimeError("no memory for the result")

    own.graph._graph.replay = refuse
    with pytest.warns(RuntimeWarning, match="because a replay failed: no memory for the result"):
        own.step(content[6], 7)
    own.step(content[7], 8)
    assert own.graph._graph is None
