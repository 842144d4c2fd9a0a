import numpy as np
import pyarrow.parquet as pq
import torch

import adaftr_fast as af
from adaftr_fast.cli import main
from adaftr_fast.display.tables import paragraphs
from adaftr_fast.training.evaluation import predict


def test_an_exported_model_prints_its_files_and_metrics(model, run):
    summary, header, _, click, _, *doubts = repr(model).splitlines()
    assert summary == f"{model.folder}: model.pt2, schema.json, vocabulary.parquet"
    assert (
        header == "| validation: task |   AUC |  GAUC | log-loss | of the rate | "
        "predicted/observed | CVR AUC |"
    )
    assert doubts == model.about.doubts == run.doubts != []
    best = run.epochs[run.best_epoch - 1]["validation"]
    assert click.startswith(f"| click            | {100 * best['click']['auc']:.2f} |")
    assert model._repr_html_() == f"<p>{summary}</p>{model.table().html()}{paragraphs(*doubts)}"


def test_scores_are_the_models_and_print_their_columns(model, run, data, shop, tmp_path):
    scores = af.predict(
        model, shop / "log.csv", tmp_path / "scores.parquet", keep="time", bid=20, progress=False
    )
    assert repr(scores).startswith(
        f"{tmp_path / 'scores.parquet'}: 1,200 rows, p_ctr, p_ctcvr, p_cvr, bid ("
    )
    table = scores.read()
    assert table.column_names == ["time", *scores.columns]
    logits = predict(run.model, data.load("test"), 100).logits  # the last rows in time
    expected = torch.from_numpy(logits).sigmoid().numpy()
    found = np.stack([table["p_ctr"], table["p_ctcvr"]], 1)[-len(expected) :]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        table["bid"], 20 * np.minimum(table["p_ctr"], table["p_ctcvr"]), rtol=1e-5
    )


def test_they_equal_the_commands(model, run, data, shop, tmp_path, capsys):
    assert main(f"export --run {run.folder} --out {tmp_path}/model".split()) == 0
    shown = model.summary().replace(str(model.folder), f"{tmp_path / 'model'}")
    assert capsys.readouterr().out.splitlines()[0] == shown
    assert af.export(run.folder, tmp_path / "moved", data=data).about == model.about
    out = str(tmp_path / "command.parquet")
    command = f"predict --model {tmp_path}/model --files {shop}/log.csv --out {out}".split()
    assert (
        main(
            [
                *command,
                *[
                    "--keep",
                    "user",
                    "item",
                    "--bid",
                    "price",
                    "--cvr",
                    "output",
                    "--progress",
                    "false",
                ],
            ]
        )
        == 0
    )
    options = {"keep": ["user", "item"], "bid": "price", "cvr": "output", "progress": False}
    scores = af.predict(str(model.folder), [shop / "log.csv"], tmp_path / "api.parquet", **options)
    assert scores.read().equals(pq.read_table(out))
    assert scores.columns[:3] == ["p_ctr", "p_cvr", "p_ctcvr"]


def test_rows_that_are_left_out_are_told(model, shop, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text((shop / "log.csv").read_text() + "1201,u1,3,many,1,1\n")
    scores = af.predict(model, log, tmp_path / "scores.parquet", bad_rows=0.01, progress=False)
    assert scores.report.rows == 1200
    read, left_out = scores.lines()[1:]
    assert read == "Read: 1,201 lines below the header = 1,200 rows kept + 1 left out"
    assert left_out.startswith("Left out: 1 of 1,201 rows")
    assert scores.doubts == model.about.doubts
    page = paragraphs(*scores.lines()) + scores.unknown().html() + paragraphs(*scores.doubts)
    assert scores._repr_html_() == page
