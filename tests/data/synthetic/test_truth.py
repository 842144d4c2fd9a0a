import numpy as np

from adaftr_fast.data import hashing
from adaftr_fast.data.synthetic.log import ImpressionLog, LogConfig
from adaftr_fast.data.synthetic.truth import Truth


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def drawn(values, *names):
    return hashing.approx_normal(hashing.stream_key(7, *names), np.asarray(values))


def test_documented_process():
    user = np.array([1, 2, 0, 2, 1])
    item = np.array([3, 3, 1, 2, 1])
    many = [[5, 6], [5], [9], [9, 9], [5]]
    offsets = np.array([0, 2, 3, 4, 6, 7])
    values = {"u": user, "i": item, "many": (np.concatenate(many), offsets)}
    sizes = {"i": 3, "many": 9}
    rates = {"click": 0.3, "conversion": 0.1}
    truth = Truth(7, rates, 1.5, (0.1, 0.9), ("u", "i"), values, sizes)
    outcome = truth.outcome(values)

    def standard(scores):
        return (scores - np.mean(scores)) / np.std(scores)

    own = {}
    for stage in rates:
        pair = hashing.bits(hashing.stream_key(7, "pair", stage), user) + item.astype(np.uint64)
        score = 1.5 * drawn(pair, "pair effect", stage)
        score += drawn(user, "effect", stage, "u") + drawn(item, "effect", stage, "i")
        score += [
            drawn(tokens, "effect", stage, "many").sum() / len(tokens) ** 0.5 for tokens in many
        ]
        own[stage] = standard(score)
    related = standard(drawn(user, "relatedness", "u") + drawn(item, "relatedness", "i"))
    rho = 0.1 + 0.8 * sigmoid(3 * related)
    np.testing.assert_allclose(outcome.relatedness, rho, rtol=1e-12)
    mixed = rho * own["click"] + np.sqrt(1 - rho**2) * own["conversion"]
    logits = 1.5 * np.stack([own["click"], mixed], axis=1) + truth.intercepts
    np.testing.assert_allclose(outcome.conditional, sigmoid(logits), rtol=1e-12)
    both = outcome.conditional.prod(axis=1)
    np.testing.assert_allclose(outcome.probability[:, 1], both, rtol=1e-12)
    np.testing.assert_allclose(outcome.probability.mean(axis=0), [0.3, 0.1], rtol=1e-9)


def test_rates_are_the_papers_by_default():
    for layout, rates in (("aliccp", [0.03887, 0.000214]), ("ecomm", [0.0286, 0.0124, 0.00157])):
        log = ImpressionLog(LogConfig(rows=20_000, layout=layout))
        batch = log.batch(0, 20_000)
        means = [batch["p_" + stage].to_numpy().mean() for stage in log.stages]
        np.testing.assert_allclose(means, rates, rtol=1e-6)
