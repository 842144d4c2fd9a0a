"""Training steps as on a GPU, with the CUDA kernels of the tables run by the CPU."""

import pytest

from adaftr_fast.training.checkpoint.progress import RunningMean
from adaftr_fast.training.device import CudaCaptures
from tests.tolerances import assert_same_bits
from tests.training.device.test_graph import OPTIMIZERS, bags, batches, graphed, stepper, trained
from tests.training.device.test_reads import MODELS, gpu_path, watched  # noqa: F401  # a fixture
from tests.watch import Watch

pytestmark = pytest.mark.usefixtures("on_serial", "gpu_path")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "bags"])
def test_steps_of_all_models_read_nothing(name, ragged):
    content = [bags(each) if ragged else each for each in batches(4)]
    assert [watch.reads for watch in watched(stepper(name), content)] == [[]] * 4


@pytest.mark.parametrize("tables", OPTIMIZERS)
def test_steps_of_all_optimizers_read_nothing(tables):
    for options in (
        {"clip_norm": 0.1, "balance": "uncertainty"},
        {"accumulate": 2},
        {"accumulate": 2, "precision": "bfloat16"},
    ):
        assert [
            watch.reads for watch in watched(stepper("adaftr", tables, **options), batches(4))
        ] == [[]] * 4, options


@pytest.mark.parametrize("tables", OPTIMIZERS)
def test_a_step_does_not_grow(tables, on_serial):
    """Over 300 steps without a validation, in which rows miss more and more updates."""
    ragged = OPTIMIZERS.index(tables) % 2 == 0
    own = stepper("shared_bottom", tables, clip_norm=1.0, graph="off")
    means = RunningMean()
    counts = {}
    content = [bags(each) if ragged else each for each in batches(50)]
    for number in range(1, 301):
        each = content[number % len(content)]
        if number <= 10 or number > 290:
            launches = on_serial.launches()
            with Watch() as watch:
                means.add(own.step(each, number))
            counts[number] = sum(watch.ops.values()), on_serial.launches() - launches
            assert watch.reads == []
        else:
            means.add(own.step(each, number))
    assert set(list(counts.values())[3:]) == {counts[10]}


@pytest.mark.parametrize("tables", OPTIMIZERS)
def test_replayed_steps_equal_eager_steps(tables):
    """Gradients keep a row per look-up, so the captured tensors have the shapes of every step."""
    name = "adaftr" if tables == "adam" else "mmoe"
    content = list(batches(40))
    own, log = graphed(name, tables)
    assert_same_bits(trained(own, content, [20]), trained(stepper(name, tables), content, [20]))
    # the first step and the one after validation: no updates are deferred
    eager = 2 if tables == "adam" else 0
    assert log.count("capture") == 1  # the series of Adam stay where they are
    assert log.count("replay") == 40 - CudaCaptures.warm_up - eager
    assert not any(
        parameter.grad.is_coalesced()
        for parameter in own.model.parameters()
        if parameter.grad.is_sparse
    )
