"""Journals keep finished cells whatever kills a run; the truth and the definitions that contestants are held to."""

import functools
import json

import pytest
import torch

import adaftr_fast as af
from benchmarks import embedding
from benchmarks.embedding import Work
from benchmarks.gpu import STAGES, forms
from benchmarks.gpu.cells import Journal, Setting, name_of
from benchmarks.gpu.report import machine_of, report
from benchmarks.gpu.stages import embedding as tables
from benchmarks.gpu.stages import loss, training

KEY = {"batch": 8, "contestant": "ours"}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "loss.jsonl")


@pytest.mark.parametrize("kept", [1, 20, 51])
def test_half_a_line_is_neither_read_nor_kept(journal, kept):
    journal.append({"cell": KEY, "result": {"seconds": 1.0, "error": float("inf"), "runs": [float("nan"), 1]}})
    whole = journal.path.read_bytes()
    journal.append({"cell": {"batch": 16}, "result": {"seconds": 2.0}})
    line = journal.path.read_bytes()[len(whole) :]
    assert kept < len(line)
    journal.path.write_bytes(whole + line[:kept])
    assert list(journal.cells()) == [name_of(KEY)]
    journal.append({"cell": {"batch": 32}, "result": {}})
    assert list(journal.cells()) == [name_of(KEY), "batch=32"]
    assert journal.cells()[name_of(KEY)]["result"] == {"seconds": 1.0, "error": "inf", "runs": ["nan", 1]}


def test_a_damaged_line_is_named(journal):
    journal.path.write_text('{"machine": 1}\nnot JSON\n{"machine": 2}\n')
    with pytest.raises(ValueError, match=r"loss\.jsonl:2: expected a JSON object, got b'not JSON'"):
        journal.lines()


def test_cells_have_names_of_their_own(tmp_path):
    for stage in (loss, tables, training):
        for setting in (Setting(tmp_path), Setting(tmp_path, dry=True)):
            names = [cell.name for cell in stage.cells(setting)]
            assert len(names) == len(set(names)) > 0
    shapes = {
        (key["precision"], key["batch"], key["width"])
        for key in (cell.key for cell in loss.cells(Setting(tmp_path)))
        if "batch" in key
    }
    assert shapes == {(p, b, d) for p in loss.PRECISIONS for b in loss.BATCHES for d in loss.WIDTHS}


@pytest.mark.parametrize("chunk", [1, 200])
def test_truth_is_the_gradient_of_the_literal_form(monkeypatch, chunk):
    monkeypatch.setattr(forms, "CHUNK", chunk)
    a, b, tau = (leaf.detach().double() for leaf in forms.problem(50, 16, "float32", "cpu"))
    leaves = tuple(t.requires_grad_() for t in (a, b, tau * torch.linspace(0.5, 2, 50)))
    for x, t in zip(forms.truth(leaves), forms.step(forms.literal, leaves)):
        torch.testing.assert_close(x, t)


def test_forms_of_the_loss_are_judged(monkeypatch):
    """Beyond the tolerance rule, ours is wrong; another's figure is still a figure, with its error beside it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # traces all the same
    leaves = forms.problem(50, 16, "float32", "cpu")
    true = forms.truth(leaves)
    bounds = forms.bounds(leaves, true, "float32")
    for name, make in forms.available("float32", "cpu").items():
        found = forms.errors(forms.step(make(), leaves), true)
        assert loss.judge(found, bounds, ours=name == "ours")["accurate"], name
    found = forms.errors(forms.step(lambda a, b, tau: af.adaptive_infonce(a, b, tau * 1.001), leaves), true)
    for ours in (True, False):
        judged = loss.judge(found, bounds, ours)
        assert (judged["accurate"], "wrong" in judged) == (False, ours)


def test_a_wrong_form_is_recorded_and_not_timed(monkeypatch):
    monkeypatch.setattr(forms, "available", lambda *_: {"x": lambda: lambda a, b, tau: forms.ours(a, b.flip(0), tau)})
    key = {"precision": "float32", "batch": 40, "width": 16, "contestant": "x", "mode": "call"}
    result = loss.measure(key, "cpu")
    assert "d h_ctr errs by" in result["wrong"]
    assert "seconds" not in result


@pytest.mark.parametrize("optimizer", embedding.PEERS)
def test_tables_train_as_their_optimizers_are_defined(optimizer):
    for ids in ("uniform", "zipf"):
        work = Work(fields=3, batch=30, rows=40, ids=ids)
        for name, make in embedding.contestants(optimizer, work.rows).items():
            right = embedding.disagreement(make, work, optimizer) < embedding.AGREES
            assert right == (name != embedding.LAZY), name


def test_ids_are_those_of_the_distribution():
    uniform, zipf = (Work(3, 4000, 1000, ids=ids).batches()[0] for ids in ("uniform", "zipf"))
    assert uniform.shape == zipf.shape == (4000, 3)
    most = [ids[:, 0].bincount(minlength=1000).max() / 4000 for ids in (uniform, zipf)]
    assert most[0] < 0.01
    assert 0.1 < most[1] < 0.3  # 1 / sum of k^-1.05
    spread = Work(3, 400, 1000, spread=10).batches()[0]
    assert 0 <= spread.min() < spread.max() < 1000
    assert not (spread % 10).any()


def test_a_report_needs_figures_of_one_card(tmp_path, capsys):
    assert report(Setting(tmp_path, dry=True)) == 1
    assert "has no measurements yet" in capsys.readouterr().err
    for stage, card in zip(STAGES, ("NVIDIA H100 80GB HBM3", "NVIDIA H200")):
        (tmp_path / f"{stage}.jsonl").write_text(json.dumps({"machine": {"gpu": card}}) + "\n")
    with pytest.raises(SystemExit, match="NVIDIA H100 80GB HBM3 and NVIDIA H200"):
        machine_of(tmp_path)
