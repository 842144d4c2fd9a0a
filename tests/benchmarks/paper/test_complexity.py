import json
from dataclasses import replace

from adaftr_fast.runs.run import build
from benchmarks.paper.complexity import (
    VARIANTS,
    count_parameters,
    measure,
    report,
)


def test_every_model_is_measured_and_reported(data, budget, tmp_path):
    found = measure(data, budget, seconds=0)
    assert [cost.title for cost in found.costs] == [variant.title for variant in VARIANTS]
    assert all(cost.train_us > 0 and cost.infer_us > 0 for cost in found.costs)
    by_title = {cost.title: cost for cost in found.costs}
    # serving has no relatedness network
    assert by_title["AdaFTR"].deployed_parameters < by_title["AdaFTR"].dense_parameters
    tables = sum(data.manifest.num_embeddings) * budget.model.embedding_dim
    assert by_title["AdaFTR"].table_parameters == tables
    assert by_title["AdaFTR"].deployed_parameters == by_title["MMoE"].dense_parameters
    ple = build(replace(budget.model, name="ple", shared_experts=1), data)  # as in Table 4
    assert (
        by_title["PLE"].dense_parameters
        == count_parameters(ple, next(data.load("train").batches(16)))[1]
    )
    assert by_title["AdaFTR, no contrast"].dense_parameters == by_title["MMoE"].dense_parameters
    numbers, page, picture = report(found).write(tmp_path, "the command")
    text = page.read_text()
    assert "cores" in text
    assert "| AdaFTR, fixed τ " in text
    assert len(json.loads(numbers.read_text())["cases"]) == len(VARIANTS)
    assert picture.read_bytes()[:4] == b"\x89PNG"
