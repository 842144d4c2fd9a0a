import copy
import functools
import pickle
import resource
import sys
from dataclasses import replace

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.errors import TrainingError
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.models.base import Backbone
from adaftr_fast.optim import clip_grad_norm_
from adaftr_fast.optim.adam import DeferredAdam
from adaftr_fast.training.stepper import Stepper

SIZES = [50, 20, 3]


def adaftr(**options):
    torch.manual_seed(0)
    return build_model(ModelConfig(**options), SIZES, ["click", "conversion"]).train()


def moved(model, batches, optimizer=None, **config):
    """Takes a step per batch; returns all terms and the final weights."""
    stepper = Stepper(
        model, optimizer or OptimizerConfig(lr=0.01), TrainingConfig(batch_size=100, **config)
    )
    terms = [stepper.step(batch, number + 1, number / 4) for number, batch in enumerate(batches)]
    return terms, copy.deepcopy(model.eval().state_dict())


@pytest.fixture
def batches(splits):
    return list(splits[0].batches(100))[:5]


def test_accumulated_parts_match_the_whole_batch(model, batches):
    """The terms are means over rows, so only the order of additions differs."""
    start = copy.deepcopy(model.state_dict())
    whole, expected = moved(model, batches)
    model.load_state_dict(start)
    parts, weights = moved(model, batches, accumulate=4)
    for one, other in zip(whole, parts):
        assert one.keys() == other.keys()
        torch.testing.assert_close(
            torch.stack(list(one.values())), torch.stack(list(other.values()))
        )
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_accumulated_parts_weigh_rows_as_the_whole_batch(batches):
    """The rows of one part have no weight, and contrast blocks are the parts."""
    weight = torch.arange(100).sub(25).clamp(min=0).float()
    batches = [replace(batch, weight=weight) for batch in batches]
    (whole, _), (parts, _) = (
        moved(adaftr(contrast_rows=25), batches, accumulate=accumulate) for accumulate in (1, 4)
    )
    for one, other in zip(whole, parts):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_of_the_sum_of_the_terms_are_clipped_before_the_step(model, batches):
    (exact,) = torch.autograd.grad(sum(model.loss(batches[0]).values()), model.out.weight)
    stepper = Stepper(model, OptimizerConfig(clip_norm=1e-3), TrainingConfig(batch_size=100))
    stepper.step(batches[0], 1)
    found = model.out.weight.grad
    torch.testing.assert_close(found / found.norm(), exact / exact.norm())
    assert clip_grad_norm_(model.parameters(), 1.0).item() == pytest.approx(1e-3, rel=1e-3)


def test_a_step_makes_no_pass_over_the_tables(model, batches, monkeypatch):
    passes = []
    monkeypatch.setattr(DeferredAdam, "apply", lambda self, weight: passes.append(weight))
    config = TrainingConfig(batch_size=100, balance="pcgrad")
    stepper = Stepper(model.train(), OptimizerConfig(clip_norm=1.0), config)
    for number, batch in enumerate(batches[:3], start=1):
        stepper.step(batch, number)
    assert passes == []
    model.eval()
    assert len(passes) == len(model.embedding.table_weights())


def test_the_schedule_reaches_dense_weights_and_tables(model, batches):
    for options, expected in (
        ({}, [0.15, 0.15]),
        ({"tables": "sgd", "tables_lr": 2.0}, [0.15, 0.6]),
    ):
        optimizer = OptimizerConfig(lr=0.5, warmup_steps=10, **options)
        stepper = Stepper(model, optimizer, TrainingConfig(batch_size=100))
        stepper.step(batches[0], 3)
        groups = [group for each in stepper.optimizers for group in each.param_groups]
        assert [group["lr"] for group in groups] == pytest.approx(expected)


def test_bfloat16_is_near_float32_and_keeps_weights_in_float32(batches):
    exact, _ = moved(adaftr(), batches[:1])
    model = adaftr()
    reduced, weights = moved(model, batches[:1], precision="bfloat16")
    assert all(value.dtype == torch.float32 for value in weights.values())
    for name, value in exact[0].items():
        assert reduced[0][name].dtype == torch.float32
        torch.testing.assert_close(reduced[0][name], value, rtol=2e-2, atol=1e-4, msg=name)
    assert any(not torch.equal(reduced[0][name], value) for name, value in exact[0].items())


def test_compiled_steps_match_eager_steps(batches, monkeypatch):
    """Uses the backend aot_eager, because code generation takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    small = {"backbone": "shared_bottom", "tower_hidden": [8], "relatedness_hidden": [4]}
    small["contrast_epochs"] = 0.75  # beta falls at each step
    plain, expected = moved(adaftr(**small), batches)
    model = adaftr(**small)
    compiled, weights = moved(model, batches, compile=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batches[0].ids), model(batches[0].ids))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert not twin(batches[0].ids).any()  # a copy reads its own tables
        assert model(batches[0].ids).any()
    assert ["contrast" in terms for terms in plain] == [True] * 3 + [False] * 2
    for one, other in zip(plain, compiled):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-4, msg=name)


def test_an_unavailable_device_raises(model):
    for device in ("cudda", "meta"):  # meta has no values
        with pytest.raises(TrainingError, match=rf"training\.device: '{device}' cannot be used"):
            Stepper(model, OptimizerConfig(), TrainingConfig(device=device))
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match=r"training\.device: 'cuda:7' cannot be used"):
            Stepper(model, OptimizerConfig(), TrainingConfig(device="cuda:7"))


@pytest.mark.parametrize(
    ("l2_form", "config", "clip_norm"),
    [
        ("squared", {}, 1e-2),
        ("squared", {"accumulate": 2}, 0.0),
        ("norm", {}, 0.0),
        ("norm", {"accumulate": 2}, 1e-2),
        ("norm", {"precision": "bfloat16"}, 0.0),
    ],
)
def test_a_penalty_in_the_look_up_trains_alike(batches, monkeypatch, l2_form, config, clip_norm):
    """The penalty's gradient is added in the merge, or by autograd: only the order of additions
    differs.
    """
    optimizer = OptimizerConfig(lr=0.01, clip_norm=clip_norm)
    found = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(Backbone, "_sums_squares_at_look_up", lambda *_: False)
        found.append(moved(adaftr(l2=1e-2, l2_form=l2_form), batches, optimizer, **config))
    (terms, weights), (expected_terms, expected_weights) = found
    torch.testing.assert_close(terms[0], expected_terms[0])
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults")
def test_steps_take_no_new_memory():
    """Each step gives its memory to the next: a page that the system must clear first costs as much
    as to fill it.
    """
    if af.cpu_capability() == "none":
        pytest.skip("the C++ extension is not built")
    torch.manual_seed(0)
    fields = 121
    rows = 1024
    model = build_model(ModelConfig(), [50] * fields, ["click", "conversion"]).train()
    stepper = Stepper(model, OptimizerConfig(), TrainingConfig(batch_size=rows))
    labels = (torch.rand(rows, 2) < 0.5).float()
    batch = Batch(
        torch.randint(0, 50, (rows, fields)), labels, torch.zeros(rows, dtype=torch.int64)
    )
    for number in range(1, 11):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        stepper.step(batch, number)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    # of the last step; of 4 KiB, while the gradient of the look-ups alone takes 968
    assert faults < 500
