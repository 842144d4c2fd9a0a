"""The stages without a GPU: their cells, the truth that contestants are held to, and what is built
and collected.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adaftr_fast as af
from benchmarks.gpu import ROOT, STAGES, collect
from benchmarks.gpu.cells import Setting
from benchmarks.gpu.report import report
from benchmarks.gpu.stages import (
    build,
    checks,
    correctness,
    embedding,
    headline,
    loss,
    profile,
    sanitizer,
    training,
)
from benchmarks.gpu.stages import contestants as forms
from benchmarks.gpu.worker import stage_cells


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


@pytest.mark.parametrize("name", STAGES)
def test_cells_have_names_of_their_own(name, setting):
    cells = stage_cells(name, setting, {})
    assert len({cell.name for cell in cells}) == len(cells) > 0
    assert all(cell.seconds < STAGES[name] < 8 * 60 for cell in cells)


def test_grids(setting):
    shapes = {
        (cell.key["precision"], cell.key["batch"], cell.key["width"])
        for cell in loss.cells(setting)
        if "batch" in cell.key
    }
    assert shapes == {(p, b, d) for p in loss.PRECISIONS for b in loss.BATCHES for d in loss.WIDTHS}
    assert (loss.BATCHES[0], loss.BATCHES[-1]) == (1024, 131_072)
    first = next(cell for cell in loss.cells(setting) if "batch" in cell.key)
    assert first.key["batch"] == 1024  # what is small and useful comes first
    looked_up = {cell.key["batch"] for cell in embedding.cells(setting)}
    assert looked_up == {1024, 8192, 65_536}


def test_correctness_takes_every_file_that_concerns_the_gpu():
    groups = ("tables and trainer", "loss", "without a GPU")
    tables, loss, others = (correctness.files_of(group) for group in groups)
    files = [*tables, *loss, *others]
    found = {
        str(path.relative_to(ROOT))
        for folder in correctness.FOLDERS
        for path in (ROOT / folder).rglob("test_*.py")
    }
    assert sorted(files) == sorted(found)
    on_a_card = {
        path for path in found if "cuda.is_available" in (ROOT / path).read_text(encoding="utf-8")
    }
    assert {"tests/cuda/test_on_a_card.py", "tests/kernels/infonce/gluon/test_gluon.py"} < on_a_card
    assert on_a_card <= {*tables, *loss}


@pytest.mark.parametrize("chunk", [1, 200, forms.CHUNK])
def test_truth_is_the_gradient_of_the_literal_form(monkeypatch, chunk):
    monkeypatch.setattr(forms, "CHUNK", chunk)
    a, b, tau = (leaf.detach().double() for leaf in forms.problem(50, 16, "float32", "cpu"))
    leaves = tuple(t.requires_grad_() for t in (a, b, tau * torch.linspace(0.5, 2, 50)))
    for x, t in zip(forms.truth(leaves), forms.step(forms.literal, leaves)):
        torch.testing.assert_close(x, t)


@pytest.mark.parametrize("name", forms.available("float32", "cpu"))
def test_forms_of_the_loss_are_judged_accurate(name, monkeypatch):
    # traces all the same
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    leaves = forms.problem(50, 16, "float32", "cpu")
    true = forms.truth(leaves)
    found = forms.errors(forms.step(forms.available("float32", "cpu")[name](), leaves), true)
    assert loss.judge(found, forms.bounds(leaves, true, "float32"), ours=name == "ours")["accurate"]


def wrong_temperature(a, b, tau):
    return af.adaptive_infonce(a, b, tau * 1.001)


@pytest.mark.parametrize("ours", [True, False])
def test_a_form_beyond_the_rule_is_seen(ours):
    leaves = forms.problem(50, 16, "float32", "cpu")
    true = forms.truth(leaves)
    found = forms.errors(forms.step(wrong_temperature, leaves), true)
    judged = loss.judge(found, forms.bounds(leaves, true, "float32"), ours)
    assert not judged["accurate"]
    # another's figure is still a figure, with its error beside it
    assert ("wrong" in judged) == ours


def test_a_wrong_form_is_recorded_and_not_timed(monkeypatch):
    monkeypatch.setattr(
        forms,
        "available",
        lambda *_: {"other": lambda: lambda a, b, tau: forms.ours(a, b.flip(0), tau)},
    )
    key = {"precision": "float32", "batch": 40, "width": 16, "contestant": "other", "mode": "call"}
    result = loss.measure(key, Setting(Path(), dry=True))
    assert "d h_ctr errs by" in result["wrong"]
    assert "seconds" not in result


@pytest.mark.parametrize("name", checks.CHECKS)
def test_checks_pass_on_the_cpu(name):
    assert checks.CHECKS[name]("cpu")


def test_a_check_sees_another_result(monkeypatch):
    monkeypatch.setattr(forms, "ours", wrong_temperature)
    with pytest.raises(AssertionError, match=r"float32, logits up to .*: .* errs by"):
        checks.transposed_scores("cpu")


def test_outcomes_of_test_files_are_kept(tmp_path, setting, monkeypatch):
    for name in [each for each in os.environ if each.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)  # the run that it starts is of no worker of this one
    monkeypatch.setattr(correctness.os, "cpu_count", lambda: 1)
    path = tmp_path / "test_it.py"
    path.write_text(
        "import pytest, sys\n"
        "plugin = sys.modules['benchmarks.gpu.stages.reports']\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no GPU')\n"
        "def test_skipped(): pass\n"
        "def test_faults():\n"
        "    plugin._is_broken = lambda: True\n"
        "    assert 1 == 3\n"
        "def test_after(): assert not plugin._is_broken()  # in a new process\n"
    )
    monkeypatch.setitem(correctness.GROUPS, "it", [str(path)])
    found = correctness.pytest({"tests": "it"}, setting)
    assert found["files"][next(iter(found["files"]))] == {"passed": 2, "failed": 2, "skipped": 1}
    assert (found["tests"], found["passed"], found["skipped"]) == (5, 2, 1)
    assert next(iter(found["skips"])).endswith("no GPU")
    assert found["failed"].startswith("2 of 5 tests. pytest ended with status 1")
    assert any("assert 1 == 2" in shown for shown in found["failures shown"])
    assert any("assert 1 == 3" in shown for shown in found["failures shown"])


def test_a_run_of_tests_that_was_ended_has_the_outcomes_before(tmp_path):
    reports = tmp_path / "reports.jsonl"
    lines = [
        {"begun": "good"},
        {"test": "good", "outcome": "passed", "text": ""},
        {"begun": "hangs"},
    ]
    reports.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = correctness.outcomes(reports, "no end within 100 s")
    assert (found["tests"], found["passed"], found["without an outcome"]) == (1, 1, ["hangs"])
    assert found["failed"] == "0 of 1 tests. no end within 100 s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_the_build_names_a_missing_gpu():
    with pytest.raises(RuntimeError, match=r"expected a CUDA GPU; torch .* sees none"):
        build.architectures()


@pytest.mark.parametrize(
    ("result", "current"),
    [
        ({"host": build.host()}, True),
        ({"host": "another"}, False),
        ({"host": build.host(), "failed": "no"}, False),
    ],
)
def test_what_another_machine_built_is_not_current(result, current, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SITE", tmp_path)
    assert (
        build.is_current(Setting(tmp_path), {"cell": {"step": "extension"}, "result": result})
        == current
    )


@pytest.mark.parametrize(
    ("wheel", "present", "needed"),
    [
        ("memeff-0.3.1", "0.3.1", False),
        ("memeff-0.3.1", "0.4.0", True),
        ("setuptools-81.0.0", "80.9.0", False),
        ("setuptools-81.0.0", "65.5.0", True),
        ("hypothesis-6.170.17", "6.99.1", True),
        ("inf_cl-1.2.1", "1.2.1+cu130", True),
        ("tqdm-4.67.1", "4.60.0+local", False),
        ("tqdm-4.67.1", None, True),
    ],
)
def test_a_wheel_is_installed_where_the_machine_lacks_it(
    wheel, present, needed, tmp_path, monkeypatch
):
    file = tmp_path / f"{wheel}-py3-none-any.whl"
    file.touch()
    monkeypatch.setattr(build, "SITE", tmp_path / "site")
    monkeypatch.setattr(build, "present", lambda name: present)
    installed = build.wheels({}, Setting(tmp_path, tmp_path, dry=True))["installed"]
    assert installed == [file.name] * needed


def test_collected_packages_leave_out_what_comes_with_torch():
    names = [collect.name_of(requirement) for requirement in collect.REQUIREMENTS]
    assert len(names) == len(set(names))
    assert {"memeff", "inf-cl", "pyarrow", "expecttest"} < set(names)
    assert not {name for name in names if name.startswith(("torch", "triton", "nvidia"))}


def test_collecting_names_an_unknown_package(tmp_path):
    with pytest.raises(SystemExit, match=r"--without: expected names among memeff, .*; got pyarow"):
        collect.collect(tmp_path, ["pyarow"])


def test_a_report_of_nothing_says_so(tmp_path, capsys):
    assert report(Setting(tmp_path, dry=True)) == 1
    assert "has no measurements yet" in capsys.readouterr().err


def test_cells_of_the_loss_name_the_kernels_that_variables_choose(setting, monkeypatch):
    default = {cell.name for cell in loss.cells(setting)}
    monkeypatch.setenv(forms.SWEEPS, "gluon")
    monkeypatch.setenv(forms.BLOCKS, "narrow")
    chosen = {cell.name for cell in loss.cells(setting)}
    ours = {name for name in chosen if "contestant=ours" in name}
    assert all(name.endswith("sweeps=gluon blocks=narrow") for name in ours)
    assert chosen - ours == {name for name in default if "contestant=ours" not in name}


def test_the_headline_selects_one_choice_of_kernels(monkeypatch):
    monkeypatch.setenv(forms.SWEEPS, "gluon")
    with headline.selected(headline.CHOICES["narrow"].variables):
        assert forms.chosen_kernels() == {"blocks": "narrow"}
    assert forms.chosen_kernels() == {"sweeps": "gluon"}


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0),
        ("========= ERROR SUMMARY: 12 errors", "========= ERROR SUMMARY: 12 errors\n"),
        ("========= Device not supported", "========= Device not supported\n"),
    ],
)
def test_findings_of_the_sanitizer_are_counted(printed, found):
    assert sanitizer.findings(["sh", "-c", f"echo '{printed}'"], 60, "tables Adam") == found


@pytest.mark.parametrize("name", ["loss float32 64", "tables Adam"])
def test_programs_of_the_sanitizer_run(name):
    sanitizer.PROGRAMS[name](device="cpu")


def test_training_is_measured_with_and_without_captured_steps(setting):
    keys = [cell.key for cell in training.cells(setting) if "model" in cell.key]
    assert {training.options(key, setting)["graph"] for key in keys} == {"auto", "off"}


def test_a_profile_names_why_there_are_no_counters(setting, monkeypatch):
    monkeypatch.setattr(profile.shutil, "which", lambda _: None)
    assert profile.nsight_compute({}, setting) == {"skipped": "no ncu on PATH"}


def test_the_supervisor_needs_nothing_that_the_build_installs():
    code = (
        "import sys; import benchmarks.gpu.__main__, benchmarks.gpu.supervise, "
        "benchmarks.gpu.worker\n"
        "import benchmarks.gpu.stages.build\n"
        "top = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
        "print(sorted(name for name in top if not name.startswith('_') and "
        "getattr(sys.modules[name], '__file__', '')))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "['benchmarks']", done.stderr
