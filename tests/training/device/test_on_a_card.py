"""What only a GPU shows: that its streams, graphs and memory behave as the simulated ones of the
other tests.

Two eager runs bound the differences that are allowed: none, if the kernels of a run are
deterministic.
"""

import pytest
import torch

from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.errors import TrainingError
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.checkpoint.progress import RunningMean
from adaftr_fast.training.device import CudaCaptures, to_device
from tests.cuda.test_on_a_card import as_users_run  # noqa: F401  # a fixture
from tests.training.conftest import trainer
from tests.training.device.test_feed import assert_same, batch
from tests.training.device.test_graph import OPTIMIZERS, ROWS, SIZES, bags, batches
from tests.training.device.test_graph import stepper as stepper_on

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = [f"cuda:{number}" for number in range(min(2, torch.cuda.device_count()))] or ["cuda:0"]
TASKS = ["click", "conversion"]


def stepper(device="cuda:0", name="adaftr", **options):
    return stepper_on(name, device=device, **options)


def trained(own, content, flush_after=()):
    """Takes a step per batch; returns all terms and weights in one vector on the CPU."""
    found = []
    for number, each in enumerate(to_device(iter(content), own.device), start=1):
        found.append(torch.stack(tuple(own.step(each, number).values())))
        if number in flush_after:
            own.model.eval()
            own.model.train()
    own.model.eval()  # applies deferred updates
    return torch.cat(
        [*found, *(parameter.detach().flatten() for parameter in own.model.parameters())]
    ).cpu()


def assert_as_equal_as_eager_runs(run, make):
    """Compares ``run(make(graph="auto"))`` with two eager runs."""
    one, other = (run(make(graph="off")) for _ in range(2))
    graphed = make(graph="auto")
    found = run(graphed)
    assert graphed.graph._graph is not None
    assert not graphed.graph._failed
    allowed = 10 * (one - other).abs().max().item()
    torch.testing.assert_close(found, one, rtol=0, atol=allowed)


@pytest.mark.parametrize(
    "options",
    [
        *({"tables": tables, "device": device} for device in DEVICES for tables in OPTIMIZERS),
        {"name": "mmoe"},
        {"clip_norm": 0.1},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_graphed_steps_equal_eager_steps(options):
    content = list(batches(50))
    assert_as_equal_as_eager_runs(
        lambda own: trained(own, content, [20]), lambda **config: stepper(**options, **config)
    )
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("tables", OPTIMIZERS)
@pytest.mark.parametrize("ragged", [False, True])  # ragged batches are not captured
def test_steps_do_not_synchronize(tables, ragged):
    own = stepper(tables=tables, clip_norm=1.0)
    means = RunningMean()
    content = to_device((bags(each) if ragged else each for each in batches(60)), own.device)
    for number, each in enumerate(content, start=1):
        means.add(own.step(each, number))
        torch.cuda.set_sync_debug_mode("default" if number < CudaCaptures.warm_up + 5 else "error")
    torch.cuda.set_sync_debug_mode("default")
    assert all(value > 0 for value in means.means().values())


@pytest.fixture(autouse=True)
def sync_debug_mode():
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ragged", [False, True])
def test_the_feed_waits_for_a_slow_device_and_for_slow_copies(device, ragged):
    device = torch.device(device)
    content = [
        batch(20_000 - 100 * number if not ragged else 2_000 * (number % 7 + 1), bags=ragged)
        for number in range(20)
    ]
    seen = []
    for each in to_device(iter(content), device):
        with torch.cuda.device(device):
            torch.cuda._sleep(5_000_000)  # some milliseconds, so that the host runs ahead
        assert each.ids.device == device
        seen.append(each.map(torch.clone))
    for one, other in zip(seen, content, strict=True):
        assert_same(one.map(torch.Tensor.cpu), other)


def test_an_abandoned_feed_does_not_write_into_the_memory_of_others():
    for _ in range(20):
        feed = to_device(iter([batch(50_000) for _ in range(3)]), torch.device("cuda:0"))
        next(feed)
        feed.close()  # a copy may still run
        zeros = [torch.zeros(1 << 20, device="cuda:0") for _ in range(4)]
        torch.cuda.synchronize()
        assert not any(each.any() for each in zeros)


def splits():
    return Split.of(next(batches(1, rows=40 * ROWS))), Split.of(next(batches(1, rows=500)))


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_trains_and_resumes(device, tmp_path):
    def run_in(name):
        torch.manual_seed(0)
        model = build_model(ModelConfig(), SIZES, TASKS)
        return trainer(
            model, splits(), tmp_path / name, batch_size=ROWS, max_epochs=3, device=device
        )

    def losses(result):
        return torch.tensor([list(record["train"].values()) for record in result.epochs])

    one, other = (losses(run_in(name).fit()) for name in ("one", "other"))
    run = run_in("stopped")
    epoch = run.train_epoch
    run.train_epoch = lambda number, interrupt: (
        interrupt.request() if number == 2 else epoch(number, interrupt)
    )
    assert run.fit().interrupted
    again = run_in("stopped")
    assert again.resume()
    torch.testing.assert_close(
        losses(again.fit()), one, rtol=0, atol=10 * (one - other).abs().max().item()
    )


def test_a_loss_that_is_not_finite_is_found_and_not_saved(tmp_path):
    model = build_model(ModelConfig(name="mmoe"), SIZES, TASKS)
    with pytest.raises(TrainingError, match=r"^epoch 1, steps 1 to 20: the loss is not finite"):
        trainer(model, splits(), tmp_path, lr=1e30, batch_size=ROWS, device="cuda").fit()
    assert not (tmp_path / "last").exists()


def test_a_lack_of_memory_is_reported():
    own = stepper()
    content = next(to_device(batches(1, rows=4_000_000), torch.device("cuda:0")))
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        with pytest.raises(
            TrainingError,
            match=r"^out of memory on cuda:0 \(\d+\.\d GiB allocated, \d+\.\d GiB in all\)",
        ):
            own.step(content, 1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_capture_that_fails_leaves_stream_and_memory_and_steps_go_on():
    """The last test: a capture that fails may leave the allocator unusable."""
    own = stepper(tables="lazy_adam")
    loss = own.loss
    here = torch.cuda.current_stream()

    def reading(each, **context):
        terms = loss(each, **context)
        terms["click"].item()  # not permitted in a capture
        return terms

    own.loss = reading
    with pytest.warns(
        RuntimeWarning, match=r"training\.graph: steps run eagerly, because the capture failed: "
    ):
        found = trained(own, batches(12))
    assert torch.cuda.current_stream() == here
    one, other = (trained(stepper(tables="lazy_adam", graph="off"), batches(12)) for _ in range(2))
    torch.testing.assert_close(found, one, rtol=0, atol=10 * (one - other).abs().max().item())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    reserved = torch.cuda.memory_reserved()
    cached = torch.empty(total // 8, dtype=torch.uint8, device="cuda")
    del cached
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved  # memory is given back as before
