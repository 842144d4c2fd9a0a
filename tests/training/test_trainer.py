import json
import signal
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from adaftr_fast.config import OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.errors import DivergedError, TrainingError
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.optim import SGD, Adagrad, Adam, LazyAdam, RowwiseAdagrad
from adaftr_fast.training import trackers as tracking
from adaftr_fast.training.checkpoint.weights import Description, load_checkpoint
from adaftr_fast.training.checkpoint.weights import weights_of as named_weights_of
from adaftr_fast.training.evaluation import evaluate
from adaftr_fast.training.files import RunFiles
from adaftr_fast.training.optimizers import build_optimizers
from adaftr_fast.training.trainer import Trainer
from tests.training.conftest import whole

ABOUT = Description(
    config=RunConfig(), fingerprint="f", num_embeddings=[50, 20, 3], tasks=["click", "conversion"], metrics={}
)


def trainer(model, splits, folder=None, lr=0.01, **config):
    config = TrainingConfig(**{"batch_size": 100, "max_epochs": 4, "progress": False} | config)
    files = RunFiles(model, config, folder, ABOUT, rows=len(splits[0]))
    return Trainer(model, *splits, optimizer=OptimizerConfig(lr=lr), config=config, files=files)


def weights_of(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_training_learns_and_writes_metrics_and_weights(model, splits, tmp_path):
    result = trainer(model, splits, tmp_path / "run").fit()
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert records == result.epochs
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    assert records[-1]["train"]["click"] < records[0]["train"]["click"]
    assert records[0].keys() == {"epoch", "seconds", "samples_per_s", "train", "validation", "diagnostics"}
    best = records[result.best_epoch - 1]["validation"]
    assert best["click"]["auc"] > 0.75
    assert best == evaluate(model, splits[1], 8192)  # the model holds the best weights
    saved, about = load_checkpoint(tmp_path / "run/best")
    assert all(torch.equal(saved[name], value) for name, value in named_weights_of(model).items())
    assert about.metrics == best


def test_the_same_seed_gives_the_same_bits(splits, model):
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def trained(seed):
        model.load_state_dict(start)
        trainer(model, splits, seed=seed, max_epochs=2).fit()
        return weights_of(model)

    first = trained(3)
    assert torch.equal(first, trained(3))
    assert not torch.equal(first, trained(4))


def test_a_step_is_an_adam_step_on_the_sum_of_the_terms(model, splits):
    run = trainer(model, splits, lr=0.01)
    batch = next(splits[0].batches(100))
    loss = sum(model.loss(batch).values())
    grads = torch.autograd.grad(loss, list(model.out.parameters()))
    before = [parameter.detach().clone() for parameter in model.out.parameters()]
    terms = run.train_step(batch, 1, 1)
    assert terms.keys() == {"click", "conversion"}
    for old, grad, new in zip(before, grads, model.out.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 0.01 * grad / (grad.abs() + 1e-8))  # Adam's first step


@pytest.mark.parametrize(("name", "kind"), [("adam", Adam), ("lazy_adam", LazyAdam)])
def test_one_optimizer_takes_tables_and_dense_weights(name, kind, model):
    (optimizer,) = build_optimizers(model, OptimizerConfig(lr=0.5, beta1=0.8, tables=name, tables_lr=0.25))
    assert type(optimizer) is kind
    dense, sparse = optimizer.param_groups
    assert {id(p) for p in dense["params"]} == {id(p) for p in model.out.parameters()}
    assert sparse["params"][0] is model.embedding.weight
    assert [group["lr"] for group in (dense, sparse)] == [0.5, 0.25]
    assert all(group["betas"] == (0.8, 0.999) for group in (dense, sparse))


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_the_optimizer_of_tables_can_be_chosen(name, model):
    kinds = {"sgd": SGD, "adagrad": Adagrad, "rowwise_adagrad": RowwiseAdagrad}
    dense, sparse = build_optimizers(model, OptimizerConfig(lr=0.5, eps=1e-3, tables=name, tables_lr=0.25))
    assert isinstance(dense, torch.optim.Adam)
    assert type(sparse) is kinds[name]
    assert sparse.param_groups[0]["lr"] == 0.25
    assert sparse.param_groups[0].get("eps", 1e-3) == 1e-3


def test_training_stops_after_patience_epochs_without_improvement(model, splits, monkeypatch):
    aucs = iter([0.6, 0.8, 0.7, 0.8, 0.9, 0.9])
    kept = []

    def fake(model, split, size, ranks):
        kept.append(weights_of(model))
        value = next(aucs)
        return {task: {"auc": value} for task in model.task_names}

    monkeypatch.setattr("adaftr_fast.training.trainer.evaluate", fake)
    result = trainer(model, splits, patience=2, max_epochs=10).fit()
    assert (result.best_epoch, len(result.epochs)) == (2, 4)
    assert torch.equal(weights_of(model), kept[1])


def test_a_loss_that_is_not_finite_raises_before_the_update(model, splits):
    with torch.no_grad():
        model.out.bias[1] = float("nan")
    table = model.embedding.weight.detach().clone()
    with pytest.raises(DivergedError, match=r"epoch 1, step 1: the loss is not finite \(click .*, conversion nan\)"):
        trainer(model, splits).fit()
    assert torch.equal(model.embedding.weight, table)


@pytest.fixture
def gpu_path(monkeypatch):
    """Steppers read no losses, as on a GPU."""
    monkeypatch.setattr("adaftr_fast.training.stepper.reads_losses", lambda device: False)


def diverging_at(run, step):
    """Makes a weight infinite before a step of all epochs, counted from 1."""
    done = run.train_step

    def train_step(batch, epoch, number):
        if run.progress.total_steps + 1 == step:
            with torch.no_grad():
                run.model.out.bias[1] = float("inf")
        return done(batch, epoch, number)

    run.train_step = train_step


@pytest.mark.parametrize(
    ("step", "shown"),
    [(1, "epoch 1, steps 1 to 20"), (20, "epoch 1, steps 1 to 20"), (21, "epoch 1, steps 21 to 34"),
     (34, "epoch 1, steps 21 to 34"), (35, "epoch 2, steps 1 to 20"), (67, "epoch 2, steps 21 to 34")],
)  # fmt: skip
def test_without_reads_the_check_names_the_steps_since_the_last(model, splits, gpu_path, step, shown):
    train = Split.of(whole(splits[0])[:3400])  # 34 steps: a check within an epoch and one at its end
    run = trainer(model, (train, splits[1]))
    diverging_at(run, step)
    with pytest.raises(DivergedError, match=rf"^{shown}: the loss is not finite \(click \S+, conversion (nan|inf)\)"):
        run.fit()


def test_every_step_is_checked_with_sync_steps_of_one(model, splits, gpu_path):
    run = trainer(model, splits, sync_steps=1)
    diverging_at(run, 7)
    with pytest.raises(TrainingError, match=r"^epoch 1, step 7: the loss is not finite"):
        run.fit()


@pytest.mark.parametrize("step", [3, 38, 45])
def test_no_snapshot_holds_weights_after_a_loss_that_is_not_finite(
    model, splits, tmp_path, gpu_path, step, monkeypatch
):
    """A snapshot is written after each step; the last one is from before, and the run resumes from it."""
    monkeypatch.setattr("adaftr_fast.training.checkpoint.snapshots.available_memory", lambda: 0)  # no thread writes
    run = trainer(model, splits, tmp_path, checkpoint_seconds=0)
    diverging_at(run, step)
    with pytest.raises(TrainingError, match=f"step {(step - 1) % 40 + 1}: the loss is not finite"):
        run.fit()
    again = trainer(type(model)(), splits, tmp_path)
    assert again.resume()
    assert again.progress.total_steps == step - 1
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())
    assert again.fit().best_epoch


def test_an_interruption_saves_nothing_after_a_loss_that_is_not_finite(model, splits, tmp_path, gpu_path):
    run = trainer(model, splits, tmp_path)
    diverging_at(run, 3)
    step = run.train_step

    def interrupted_step(*arguments):
        if run.progress.step == 4:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    run.train_step = interrupted_step
    with pytest.raises(TrainingError, match="epoch 1, steps 1 to 5: the loss is not finite"):
        run.fit()
    assert not (tmp_path / "last").exists()


def test_flagged_ids_are_raised_at_the_next_check(model, splits, monkeypatch):
    checks = []

    def flagged(device):
        checks.append(device)
        if len(checks) == 2:
            raise IndexError("fused_embedding: ids[3, 0] = 99")

    monkeypatch.setattr("adaftr_fast.training.trainer.raise_bad_ids", flagged)
    run = trainer(model, splits)
    with pytest.raises(IndexError, match=r"epoch 1, steps 21 to 40: fused_embedding: ids\[3, 0\] = 99"):
        run.fit()
    assert run.progress.step == 40
    assert checks == [torch.device("cpu")] * 2


def test_a_run_without_reads_has_the_same_bits(model, splits, monkeypatch):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected = trainer(model, splits, max_epochs=2).fit().epochs, weights_of(model)
    model.load_state_dict(start)
    monkeypatch.setattr("adaftr_fast.training.stepper.reads_losses", lambda device: False)
    found = trainer(model, splits, max_epochs=2, sync_steps=3).fit().epochs, weights_of(model)
    assert [each["train"] for each in found[0]] == [each["train"] for each in expected[0]]
    assert torch.equal(found[1], expected[1])


def test_a_run_on_the_cpu_never_initializes_cuda(model, splits, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a run on the CPU initializes CUDA")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    for name in ("current_stream", "get_rng_state", "set_rng_state", "mem_get_info", "graph_pool_handle", "Stream"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trainer(model, splits, tmp_path, max_epochs=1, checkpoint_seconds=0).fit().best_epoch == 1
    again = trainer(type(model)(), splits, tmp_path, max_epochs=2)
    assert again.resume()
    again.fit()


def test_a_dead_tower_warns(model, splits):
    train, validation = whole(splits[0]), splits[1]
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (4000, 1)).astype(np.float32))
    shuffled = Split.of(replace(train, labels=torch.cat([train.labels[:, :1], noise], 1)))
    with torch.no_grad():
        model.out.weight[1] = 0
    model.out.weight.register_hook(lambda grad: grad * torch.tensor([[1.0], [0.0]]))
    with pytest.warns(RuntimeWarning, match=r"task conversion: validation AUC 0\.5000 is close to 0\.5"):
        result = trainer(model, (shuffled, validation), max_epochs=1).fit()
    assert result.dead_tasks == ["conversion"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("at_step", "best_epoch"), [(5, 0), (60, 1)])
def test_a_signal_stops_after_the_step_and_keeps_the_best(model, splits, tmp_path, signum, at_step, best_epoch):
    run = trainer(model, splits, tmp_path)
    step, calls = run.train_step, []

    def interrupted_step(*arguments):
        calls.append(arguments)
        if len(calls) == at_step:
            signal.raise_signal(signum)
        return step(*arguments)

    run.train_step = interrupted_step
    handler = signal.getsignal(signum)
    result = run.fit()
    assert result.interrupted == signum
    assert len(calls) == at_step
    assert (result.best_epoch, len(result.epochs)) == (best_epoch, best_epoch)
    assert signal.getsignal(signum) is handler
    assert (tmp_path / "last").is_dir()
    if best_epoch:
        saved, _ = load_checkpoint(tmp_path / "best")
        assert all(torch.equal(saved[name], value) for name, value in named_weights_of(model).items())
    else:
        assert not (tmp_path / "best").exists()


def test_an_earlier_run_is_replaced_atomically(model, splits, tmp_path):
    trainer(model, splits, tmp_path, max_epochs=2).fit()
    (tmp_path / "test.json").write_text("{}")
    trainer(model, splits, tmp_path).files.finish()
    old = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    failing = trainer(model, splits, tmp_path)
    failing.train_epoch = lambda epoch, interrupt: interrupt.request()
    assert failing.fit().epochs == []
    failing.files.finish()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == old

    failing = trainer(model, splits, tmp_path)
    failing._save_progress = lambda: 1 / 0  # as on a full disk
    with pytest.raises(ZeroDivisionError):
        failing.fit()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == old

    failing = trainer(model, splits, tmp_path)
    failing.files.save_best = lambda metrics: 1 / 0  # stopped before the weights of the first epoch are saved
    with pytest.raises(ZeroDivisionError):
        failing.fit()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "best", "last"}
    assert not any((tmp_path / "best").iterdir())


def test_resuming_logs_an_epoch_that_a_killed_run_did_not_log(model, splits, tmp_path):
    trainer(model, splits, tmp_path, max_epochs=2).fit()
    trainer(model, splits, tmp_path).files.finish()
    stopped = trainer(model, splits, tmp_path, max_epochs=1)
    stopped.files.log = lambda record: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stopped.fit()
    resumed = trainer(model, splits, tmp_path, max_epochs=1)
    assert resumed.resume()
    resumed.fit()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    saved, _ = load_checkpoint(tmp_path / "best")
    assert all(torch.equal(saved[name], value) for name, value in named_weights_of(resumed.model).items())


def test_an_error_of_on_epoch_closes_the_trackers_also_on_resuming(model, splits, tmp_path, monkeypatch):
    tracker = Mock(known="id")
    monkeypatch.setattr(tracking, "_opened", lambda name, opening: tracker)
    for _ in range(2):
        run = trainer(model, splits, tmp_path, trackers=["wandb"])
        run.on_epoch = lambda record: 1 / 0
        run.resume()
        with pytest.raises(ZeroDivisionError):
            run.fit()
        tracker.close.assert_called_once_with(True)
        tracker.close.reset_mock()


def test_an_error_of_an_op_on_diverged_values_says_so(model, splits):
    def refuse(batch):
        raise RuntimeError("adaptive_infonce: tau is not positive")

    model.loss = refuse
    with pytest.raises(RuntimeError, match="tau is not positive") as caught:
        trainer(model, splits).fit()
    assert not isinstance(caught.value, TrainingError)  # the model is finite, so it has not diverged
    with torch.no_grad():
        model.out.bias[1] = float("inf")
    with pytest.raises(DivergedError, match=r"epoch 1, step 1: out\.bias is not finite; lower optimizer\.lr"):
        trainer(model, splits).fit()


@pytest.mark.parametrize("name", ["mmoe", "adaftr"])
@pytest.mark.parametrize("batch_size", [100, 4000])  # detected at the second step, or after the only one
def test_divergence_is_a_training_error(splits, name, batch_size):
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name), [50, 20, 3], ["click", "conversion"])
    with pytest.raises(TrainingError, match="finite"):
        trainer(model, splits, lr=1e30, batch_size=batch_size).fit()


def test_a_single_class_or_too_few_rows_raise(model, splits):
    train, validation = splits[0], whole(splits[1])
    constant = Split.of(replace(validation, labels=torch.zeros_like(validation.labels)))
    with pytest.raises(TrainingError, match="task click: expected two classes in the validation split"):
        trainer(model, (train, constant)).fit()
    with pytest.raises(TrainingError, match="4000 training rows are fewer than a batch of 5000"):
        trainer(model, splits, batch_size=5000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected >= 1, got 0"),
        ({"patience": 0}, "patience: expected >= 1, got 0"),
        ({"max_epochs": -1}, "max_epochs: expected >= 1, got -1"),
        ({"seed": -1}, r"seed: expected a seed in \[0, .*\], got -1"),
        ({"sync_steps": 0}, "sync_steps: expected >= 1, got 0"),
        ({"graph": "on"}, "graph: expected one of auto, off, got 'on'"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds: expected a number of seconds >= 0, got -1"),
    ],
)
def test_invalid_options_raise(change, message):
    with pytest.raises(ValueError, match=rf"training\.{message}"):
        TrainingConfig(**change)
