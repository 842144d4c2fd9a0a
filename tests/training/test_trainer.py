import copy
import signal
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.errors import ConfigError, DivergedError, TrainingError
from adaftr_fast.training.checkpoint.weights import load_checkpoint
from adaftr_fast.training.checkpoint.weights import weights_of as named_weights_of
from adaftr_fast.training.evaluation import evaluate, mean_auc
from adaftr_fast.training.interrupt import deferred_interrupt
from adaftr_fast.training.optimizers import TABLES, build_optimizers
from tests.logs import read_records
from tests.training.conftest import before_step, interrupt, trainer, whole


def weights_of(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_training_learns_and_writes_metrics_and_weights(model, splits, tmp_path, monkeypatch):
    start = copy.deepcopy(model.state_dict())
    result = trainer(model, splits, tmp_path / "run").fit()
    records = read_records(tmp_path / "run/metrics.jsonl")
    assert records == result.epochs
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    assert records[-1]["train"]["click"] < records[0]["train"]["click"]
    assert records[0].keys() == {
        "epoch",
        "seconds",
        "samples_per_s",
        "train",
        "validation",
        "diagnostics",
    }
    best = records[result.best_epoch - 1]["validation"]
    assert best["click"]["auc"] > 0.75
    assert best == evaluate(model, splits[1], 8192)  # the model holds the best weights
    assert holds_weights_of(tmp_path / "run/best", model)
    assert load_checkpoint(tmp_path / "run/best")[1].metrics == best
    found = weights_of(model)
    # the same seed gives the same bits, also without reads, as on a GPU
    for seed, reads in ((0, False), (4, True)):
        model.load_state_dict(start)
        monkeypatch.setattr(
            "adaftr_fast.training.stepper.reads_losses", lambda device, reads=reads: reads
        )
        again = trainer(model, splits, seed=seed, sync_steps=3).fit()
        assert torch.equal(weights_of(model), found) == (seed == 0)
        assert (
            [each["train"] for each in again.epochs] == [each["train"] for each in records]
        ) == (seed == 0)


@pytest.mark.parametrize("name", TABLES)
def test_the_optimizer_of_tables_can_be_chosen(name, model):
    """Adam takes the dense weights, too."""
    optimizers = build_optimizers(
        model, OptimizerConfig(lr=0.5, beta1=0.8, eps=1e-3, tables=name, tables_lr=0.25)
    )
    assert len(optimizers) == (1 if "adam" in name else 2)
    assert type(optimizers[-1]).__name__.lower() == name.replace("_", "")
    dense, sparse = (group for each in optimizers for group in each.param_groups)
    assert {id(p) for p in dense["params"]} == {id(p) for p in model.out.parameters()}
    assert sparse["params"][0] is model.embedding.weight
    assert [group["lr"] for group in (dense, sparse)] == [0.5, 0.25]
    assert [group.get("betas", (0.8, 0.999)) for group in (dense, sparse)] == [(0.8, 0.999)] * 2
    assert [group.get("eps", 1e-3) for group in (dense, sparse)] == [1e-3] * 2


def test_a_loss_that_is_not_finite_raises_before_the_update(model, splits):
    with torch.no_grad():
        model.out.bias[1] = float("nan")
    table = model.embedding.weight.detach().clone()
    with pytest.raises(
        DivergedError, match=r"epoch 1, step 1: the loss is not finite \(click .*, conversion nan\)"
    ):
        trainer(model, splits).fit()
    assert torch.equal(model.embedding.weight, table)


@pytest.fixture
def gpu_path(monkeypatch):
    """Steppers read no losses, as on a GPU."""
    monkeypatch.setattr("adaftr_fast.training.stepper.reads_losses", lambda device: False)


def diverging_at(run, step):
    """Makes a weight infinite before a step."""

    def diverge():
        with torch.no_grad():
            run.model.out.bias[1] = float("inf")

    before_step(run, step, diverge)


def holds_weights_of(folder, model):
    saved, _ = load_checkpoint(folder)
    return all(torch.equal(saved[name], value) for name, value in named_weights_of(model).items())


@pytest.mark.parametrize(
    ("step", "shown"),
    [(20, "epoch 1, steps "
"1 to 20"), (21, "epoch 1, steps 21 to 34"), (35, "epoch 2, steps 1 to 20")],
)  # fmt: skip
def test_without_reads_the_check_names_the_steps_since_the_last(
    model, splits, gpu_path, step, shown
):
    # 34 steps: a check within an epoch and one at its end
    train = Split.of(whole(splits[0])[:3400])
    run = trainer(model, (train, splits[1]))
    diverging_at(run, step)
    with pytest.raises(
        DivergedError,
        match=rf"^{shown}: the loss is not finite \(click \S+, conversion (nan|inf)\)",
    ):
        run.fit()


@pytest.mark.parametrize("step", [3, 45])
def test_no_snapshot_holds_weights_after_a_loss_that_is_not_finite(
    model, splits, tmp_path, gpu_path, step, monkeypatch
):
    """A snapshot is written after each step; the last one is from before, and the run resumes from
    it.
    """
    # no thread writes
    monkeypatch.setattr("adaftr_fast.training.checkpoint.snapshots.available_memory", lambda: 0)
    run = trainer(model, splits, tmp_path, checkpoint_seconds=0)
    diverging_at(run, step)
    with pytest.raises(TrainingError, match=f"step {(step - 1) % 40 + 1}: the loss is not finite"):
        run.fit()
    again = trainer(type(model)(), splits, tmp_path)
    assert again.resume()
    assert again.progress.total_steps == step - 1
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())
    diverging_at(again, step)
    before_step(again, step + 2, interrupt)  # which saves a snapshot, but not of such weights
    with pytest.raises(TrainingError, match="the loss is not finite"):
        again.fit()
    last = trainer(type(model)(), splits, tmp_path)
    assert last.resume()
    assert all(parameter.isfinite().all() for parameter in last.model.parameters())


def test_flagged_ids_are_raised_at_the_next_check(model, splits, monkeypatch):
    checks = []

    def flagged(device):
        checks.append(device)
        if len(checks) == 2:
            raise IndexError("fused_embedding: ids[3, 0] = 99")

    monkeypatch.setattr("adaftr_fast.training.trainer.raise_bad_ids", flagged)
    run = trainer(model, splits)
    with pytest.raises(
        IndexError, match=r"epoch 1, steps 21 to 40: fused_embedding: ids\[3, 0\] = 99"
    ):
        run.fit()
    assert run.progress.step == 40
    assert checks == [torch.device("cpu")] * 2


def test_a_run_on_the_cpu_never_initializes_cuda(model, splits, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a run on the CPU initializes CUDA")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    for name in (
        "current_stream",
        "get_rng_state",
        "set_rng_state",
        "mem_get_info",
        "graph_pool_handle",
        "Stream",
    ):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (
        trainer(model, splits, tmp_path, max_epochs=1, checkpoint_seconds=0).fit().best_epoch == 1
    )
    again = trainer(type(model)(), splits, tmp_path, max_epochs=2)
    assert again.resume()
    again.fit()


@pytest.mark.parametrize(
    ("signum", "at_step", "best_epoch"), [(signal.SIGINT, 5, 0), (signal.SIGTERM, 60, 1)]
)
def test_a_signal_stops_after_the_step_and_keeps_the_best(
    model, splits, tmp_path, signum, at_step, best_epoch
):
    run = trainer(model, splits, tmp_path)
    handler = signal.getsignal(signum)
    before_step(run, at_step, lambda: interrupt(signum))
    result = run.fit()
    assert (result.interrupted, run.progress.total_steps) == (signum, at_step)
    assert (result.best_epoch, len(result.epochs)) == (best_epoch, best_epoch)
    assert signal.getsignal(signum) is handler
    assert (tmp_path / "last").is_dir()
    assert (tmp_path / "best").exists() == bool(best_epoch)
    assert not best_epoch or holds_weights_of(tmp_path / "best", model)


def test_only_ctrl_c_acts_after_a_request_to_stop():
    handler = signal.signal(signal.SIGTERM, lambda *_: 1 / 0)
    try:
        for first in (signal.SIGTERM, signal.SIGINT):
            with deferred_interrupt() as requested:
                signal.raise_signal(first)
                signal.raise_signal(signal.SIGTERM)
                assert requested.signum == first
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
        with pytest.raises(ZeroDivisionError):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_an_earlier_run_is_replaced_atomically(model, splits, tmp_path):
    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    trainer(model, splits, tmp_path, max_epochs=2).fit()
    (tmp_path / "test.json").write_text("{}")
    trainer(model, splits, tmp_path).files.finish()
    old = files()
    stopped = trainer(model, splits, tmp_path)
    stopped.train_epoch = lambda epoch, interrupt: interrupt.request()
    assert stopped.fit().epochs == []
    stopped.files.finish()
    assert files() == old
    failing = trainer(model, splits, tmp_path)
    # stopped before the weights of the first epoch are saved
    failing.files.save_best = lambda metrics: 1 / 0
    with pytest.raises(ZeroDivisionError):
        failing.fit()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "best", "last"}
    assert not any((tmp_path / "best").iterdir())


@pytest.mark.parametrize("name", ["log", "save_best"])
def test_resuming_does_what_a_killed_run_did_not_do_at_the_end_of_an_epoch(
    model, splits, tmp_path, name
):
    trainer(model, splits, tmp_path, max_epochs=2).fit()
    trainer(model, splits, tmp_path).files.finish()
    killed = trainer(model, splits, tmp_path, max_epochs=1)
    setattr(killed.files, name, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        killed.fit()
    resumed = trainer(type(model)(), splits, tmp_path, max_epochs=1)
    assert resumed.resume()
    assert resumed.fit().best_epoch == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert holds_weights_of(tmp_path / "best", resumed.model)


@pytest.mark.parametrize(
    ("monitor", "best"),
    [
        ("auc", 2),
        ("logloss", 2),
        ("gauc", 4),
        ("cvr_auc", 1),
        ("conversion/auc", 3),
        ("click/logloss", 1),
    ],
)
def test_the_monitored_metric_chooses_the_weights_and_ends_the_run(
    model, splits, monkeypatch, monitor, best
):
    """Metrics whose best epochs differ: the second for click's AUC, the first for click's log-loss,
    and so on.
    """
    values = {  # per epoch
        ("click", "auc"): (0.6, 0.7, 0.5, 0.5),
        ("conversion", "auc"): (0.5, 0.6, 0.65, 0.6),
        ("click", "logloss"): (0.1, 0.2, 0.3, 0.4),
        ("conversion", "logloss"): (0.9, 0.7, 0.7, 0.65),
        ("click", "gauc"): (0.5, 0.5, 0.5, 0.6),
        ("conversion", "gauc"): (0.5, 0.5, 0.5, 0.6),
        ("conversion", "cvr_auc"): (0.7, 0.6, 0.6, 0.6),
    }
    epochs = iter(range(4))

    def metrics(*_):
        epoch = next(epochs)
        found = {"click": {}, "conversion": {}}
        for (task, name), each in values.items():
            found[task][name] = each[epoch]
        return found, {}

    monkeypatch.setattr("adaftr_fast.training.trainer.examine", metrics)
    run = trainer(model, splits, monitor=monitor, patience=2 if monitor == "cvr_auc" else 3).fit()
    assert run.best_epoch == best
    assert len(run.epochs) == (3 if monitor == "cvr_auc" else 4)


def test_validating_several_times_an_epoch_changes_no_step(splits, model, tmp_path):
    start = copy.deepcopy(model.state_dict())
    results = []
    for every in (1.0, 0.25):
        model.load_state_dict(start)
        results.append(
            trainer(model, splits, tmp_path / str(every), max_epochs=2, validate_every=every).fit()
        )
    once, often = results
    steps = len(splits[0]) // 100
    assert [record["epoch"] for record in once.epochs] == [1, 2]
    assert [record["epoch"] for record in often.epochs] == [n / 4 for n in range(1, 9)]
    # rounding differs where exact Adam catches up rows
    for each, expected in zip(often.epochs[3::4], once.epochs):
        assert each["validation"]["click"] == pytest.approx(
            expected["validation"]["click"], rel=1e-6
        )
    ends = [steps * part // 4 for part in range(5)]
    means = [record["train"]["click"] for record in often.epochs[:4]]
    weighted = sum(mean * (end - start) for mean, start, end in zip(means, ends, ends[1:])) / steps
    assert weighted == pytest.approx(once.epochs[0]["train"]["click"], rel=1e-6)
    best = max(often.epochs, key=lambda record: mean_auc(record["validation"]))
    assert often.best_epoch == best["epoch"]
    assert load_checkpoint(tmp_path / "0.25/best")[1].metrics == best["validation"]


@pytest.mark.parametrize(("number", "best", "patience"), [(1, 2, 2), (2, 2, 1), (7, 5, 1)])
def test_patience_counts_epochs_whatever_the_number_of_validations(
    model, splits, monkeypatch, number, best, patience
):
    """A later validation that is as good as the best does not count. The tower of conversion is
    dead.
    """
    aucs = iter([0.6] * (best - 1) + [0.7, 0.7] + [0.6] * 40)

    def validation(*arguments):
        found = {
            task: {"auc": next(aucs) if task == "click" else 0.5}
            for task in ("click", "conversion")
        }
        return found, {}

    monkeypatch.setattr("adaftr_fast.training.trainer.examine", validation)
    run = trainer(model, splits, patience=patience, validate_every=1 / number, max_epochs=9)
    message = r"task conversion: validation AUC 0\.5000 is close to 0\.5: its tower may be dead"
    with pytest.warns(RuntimeWarning, match=message):
        result = run.fit()
    assert result.dead_tasks == ["conversion"]
    assert [record["epoch"] for record in result.epochs] == [
        each / number for each in range(1, best + patience * number + 1)
    ]
    assert result.best_epoch == best / number


def test_a_monitored_metric_that_is_not_there_is_named(model, splits):
    ungrouped = [Split.of(replace(whole(each), group=None)) for each in splits]
    of_three = [splits[0], Split(splits[1].rows, funnel=("view", "click", "conversion"))]
    for monitor, of, message in (
        ("buy/auc", splits, r"expected one of the tasks click, conversion, got 'buy/auc'"),
        ("click/cvr_auc", splits, "the validation split has no click/cvr_auc; it needs a funnel"),
        ("click/cvr_auc", of_three, "the validation split has no click/cvr_auc; it needs a funnel"),
        ("gauc", ungrouped, "the validation split has no gauc; it needs groups"),
    ):
        with pytest.raises((ConfigError, TrainingError), match=rf"training\.monitor: {message}"):
            trainer(model, of, monitor=monitor)
    assert trainer(model, of_three, monitor="conversion/cvr_auc")


def test_on_epoch_ends_a_run_also_when_it_is_resumed(model, splits, tmp_path):
    records = []

    def ends(record):
        records.append(record["epoch"])
        return record["epoch"] == 2

    run = trainer(model, splits, tmp_path)
    run.on_epoch = ends
    result = run.fit()
    assert (records, len(result.epochs), result.interrupted) == ([1, 2], 2, 0)
    resumed = trainer(type(model)(), splits, tmp_path)
    resumed.on_epoch = ends
    assert resumed.resume()
    assert len(resumed.fit().epochs) == 2
    assert records == [1, 2, 2]


def test_an_error_of_on_epoch_closes_the_trackers_also_on_resuming(model, splits, tmp_path):
    tracker = Mock()
    opened = Mock(return_value=tracker)
    for _ in range(2):
        run = trainer(model, splits, tmp_path, open_trackers=opened, trackers=["wandb"])
        run.on_epoch = lambda record: 1 / 0
        run.resume()
        with pytest.raises(ZeroDivisionError):
            run.fit()
        tracker.close.assert_called_once_with(True)
        tracker.close.reset_mock()


def test_trackers_need_a_function_that_opens_them(model, splits, tmp_path):
    with pytest.raises(
        TrainingError, match=r"trackers: expected none without open_trackers, got wandb"
    ):
        trainer(model, splits, tmp_path, trackers=["wandb"])


def test_divergence_is_a_training_error(model, splits):
    loss = model.loss

    def refuse(batch):
        raise RuntimeError("adaptive_infonce: tau is not positive")

    model.loss = refuse
    with pytest.raises(RuntimeError, match="tau is not positive") as caught:
        trainer(model, splits).fit()
    # the model is finite, so it has not diverged
    assert not isinstance(caught.value, TrainingError)
    with torch.no_grad():
        model.out.bias[1] = float("inf")
    with pytest.raises(
        DivergedError, match=r"epoch 1, step 1: out\.bias is not finite; lower optimizer\.lr"
    ):
        trainer(model, splits).fit()
    with torch.no_grad():
        model.out.bias[1] = 0.0
    model.loss = loss
    with pytest.raises(DivergedError, match="finite"):  # after the only step
        trainer(model, splits, lr=1e30, batch_size=4000).fit()


def test_splits_that_cannot_be_trained_on_raise(model, splits):
    train = splits[0]
    validation = whole(splits[1])
    constant = Split.of(replace(validation, labels=torch.zeros_like(validation.labels)))
    for of, options, message in (
        ((train, constant), {}, "task click: expected two classes in the validation split"),
        (splits, {"batch_size": 5000}, "4000 training rows are fewer than a batch of 5000"),
        (splits, {"validate_every": 0.02}, "40 steps of an epoch are fewer than its 50 validatio"),
    ):
        with pytest.raises(TrainingError, match=message):
            trainer(model, of, **options).fit()
