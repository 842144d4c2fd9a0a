import numpy as np

from adaftr_fast.data import hashing
from adaftr_fast.data.synthetic.log import ImpressionLog, LogConfig
from adaftr_fast.data.synthetic.truth import Truth


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_documented_process_row_by_row():
    values = {"u": np.array([1, 2, 0, 2, 1]), "i": np.array([3, 3, 1, 2, 1])}
    values["many"] = (np.array([5, 6, 5, 9, 9, 9, 5]), np.array([0, 2, 3, 4, 6, 7]))
    truth = Truth(
        7,
        {"click": 0.3, "conversion": 0.1},
        1.5,
        (0.1, 0.9),
        ("u", "i"),
        values,
        sizes={"i": 3, "many": 9},
    )
    outcome = truth.outcome(values)

    def effect(stage, field, value):
        return hashing.approx_normal(
            hashing.stream_key(7, "effect", stage, field), np.array([value])
        )[0]

    def standard(scores):
        return (np.array(scores) - np.mean(scores)) / np.std(scores)

    scores = {"click": [], "conversion": [], "relatedness": []}
    for n in range(5):
        user, item = values["u"][n], values["i"][n]
        tokens = values["many"][0][values["many"][1][n] : values["many"][1][n + 1]]
        for stage in ("click", "conversion"):
            pair = hashing.bits(hashing.stream_key(7, "pair", stage), np.array([user])) + np.uint64(
                item
            )
            score = (
                1.5 * hashing.approx_normal(hashing.stream_key(7, "pair effect", stage), pair)[0]
            )
            score += effect(stage, "u", user) + effect(stage, "i", item)
            scores[stage].append(
                score + sum(effect(stage, "many", t) for t in tokens) / len(tokens) ** 0.5
            )
        segments = (("u", user), ("i", item))
        scores["relatedness"].append(
            sum(
                hashing.approx_normal(hashing.stream_key(7, "relatedness", s), np.array([v]))[0]
                for s, v in segments
            )
        )
    own = {name: standard(score) for name, score in scores.items()}
    rho = 0.1 + 0.8 * sigmoid(3 * own["relatedness"])
    np.testing.assert_allclose(outcome.relatedness, rho, rtol=1e-12)
    mixed = rho * own["click"] + np.sqrt(1 - rho**2) * own["conversion"]
    logits = 1.5 * np.stack([own["click"], mixed], axis=1) + truth.intercepts
    np.testing.assert_allclose(outcome.conditional, sigmoid(logits), rtol=1e-12)
    np.testing.assert_allclose(
        outcome.probability[:, 1], outcome.conditional.prod(axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(outcome.probability.mean(axis=0), [0.3, 0.1], rtol=1e-9)


def test_rates_are_the_papers_by_default():
    for layout, rates in (("aliccp", [0.03887, 0.000214]), ("ecomm", [0.0286, 0.0124, 0.00157])):
        log = ImpressionLog(LogConfig(rows=20_000, layout=layout))
        batch = log.batch(0, 20_000)
        means = [batch["p_" + stage].to_numpy().mean() for stage in log.stages]
        np.testing.assert_allclose(means, rates, rtol=1e-6)
