import json
from dataclasses import replace

from adaftr_fast.runs.run import build
from benchmarks.paper.complexity import VARIANTS, count_parameters, measure, report


def test_every_model_is_measured_and_reported(data, budget, tmp_path):
    found = measure(data, budget, seconds=0)
    assert [case["model"] for case in found] == [variant.title for variant in VARIANTS]
    assert all(case["training"] > 0 and case["inference"] > 0 for case in found)
    models = {case["model"]: case for case in found}
    # serving has no relatedness network
    assert models["AdaFTR"]["deployed"] < models["AdaFTR"]["dense"]
    tables = sum(data.manifest.num_embeddings) * budget.model.embedding_dim
    assert models["AdaFTR"]["tables"] == tables
    assert models["AdaFTR"]["deployed"] == models["MMoE"]["dense"]
    ple = build(replace(budget.model, name="ple", shared_experts=1), data)  # as in Table 4
    of_ple = count_parameters(ple, next(data.load("train").batches(16)))
    assert of_ple.items() <= models["PLE"].items()
    assert models["AdaFTR, no contrast"]["dense"] == models["MMoE"]["dense"]
    numbers, page, picture = report("tiny", 200, found).write(tmp_path, "the command")
    text = page.read_text()
    assert "cores" in text
    assert "| AdaFTR, fixed τ " in text
    assert "| MMoE |" in text
    assert json.loads(numbers.read_text())["cases"] == found
    assert picture.read_bytes()[:4] == b"\x89PNG"
