import numpy as np
import pytest
import torch

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.errors import ConfigError
from adaftr_fast.models import build_model
from adaftr_fast.training.evaluation import predict
from benchmarks.paper.auctions import (
    Auctions,
    Bidder,
    Candidates,
    decide,
    model_bidder,
    simulate,
    true_bidder,
)


@pytest.fixture
def data(generated):
    return PreparedData(generated)


@pytest.fixture
def auctions(data):
    return Auctions(data, 5)


def test_an_auction_by_hand():
    candidates = Candidates(
        ids=torch.zeros(6, 1, dtype=torch.int32),
        item=np.array([[1, 2, 3], [1, 3, 3]]),
        click=np.array([[0.5, 0.1, 0.9], [0.5, 0.1, 0.9]]),
        conversion=np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
        price=np.array([[2.0, 1.0, 4.0], [2.0, 1.0, 4.0]]),
        draws=np.array([[0.4, 0.6], [0.8, 0.2]]),
    )
    bids = Bidder(lambda _: np.array([[0.3, 0.4, 0.1], [0.1, 0.2, 0.3]]), weight=10.0).bids(
        candidates
    )
    np.testing.assert_allclose(bids, [[6.0, 4.0, 4.0], [2.0, 2.0, 12.0]])
    bids[1, 1] = 11.0  # of the winner's item
    counts, winners = decide(candidates, bids)
    assert winners.tolist() == [0, 2]
    # The first is clicked (0.4 < 0.5) and does not convert (0.6 >= 0.5); the second does both, at
    # the price 4. It costs the highest bid for another item.
    np.testing.assert_allclose(counts, [[1, 0, 4.0, 0], [1, 1, 2.0, 4.0]])


def test_candidates_have_the_ids_of_preparation(data, auctions):
    test = read_split(data.folder, data.manifest, "test")
    rows = np.arange(auctions.log.config.rows - len(test), auctions.log.config.rows)  # the last day
    ids = auctions.encode(auctions.log.values(rows))
    expected = np.stack([test[field.name].to_numpy() for field in data.manifest.fields], 1)
    np.testing.assert_array_equal(ids.numpy(), expected)


def test_a_slate_has_one_user_and_candidates_of_its_own(data, auctions):
    found = auctions.candidates(np.arange(100))
    places = {field.name: place for place, field in enumerate(data.manifest.fields)}
    ids = found.ids.view(100, 5, -1)
    assert (ids[..., places["101"]] == ids[:, :1, places["101"]]).all()
    assert (ids[..., places["121"]] == ids[:, :1, places["121"]]).all()
    assert len(ids[:, 0, places["101"]].unique()) > 20
    assert abs(np.corrcoef(found.draws.T)[0, 1]) < 0.3
    assert (ids[..., places["205"]] != ids[:, :1, places["205"]]).any(1).sum() > 90
    by_item = {}
    for item, price in zip(
        ids[..., places["205"]].flatten().tolist(), found.price.ravel().tolist()
    ):
        if item:  # a known item has one price
            assert by_item.setdefault(item, price) == price
    assert np.std(np.log(found.price)) == pytest.approx(0.5, rel=0.5)


def test_candidates_depend_on_the_number_of_the_auction_alone(auctions):
    whole, part = (auctions.candidates(np.arange(*ends)) for ends in ((30,), (7, 14)))
    assert torch.equal(part.ids, whole.ids[35:70])
    for name in ("click", "conversion", "price", "draws"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[7:14])


def test_equal_bidders_get_equal_traffic_and_true_ones_most_value(auctions):
    blind = Bidder(lambda candidates: np.ones(candidates.price.shape))
    counts, _ = simulate(auctions, [true_bidder(), true_bidder(), blind], 3000)
    np.testing.assert_array_equal(counts[0], counts[1])
    value = counts[..., 3].sum(1)
    assert value[0] > 1.3 * value[2]


def test_a_model_bids_its_second_prediction_calibrated_on_validation(data, auctions):
    torch.manual_seed(0)
    config = ModelConfig(name="mmoe", embedding_dim=4, expert_hidden=[8], tower_hidden=[4])
    names = [field.name for field in data.manifest.fields]
    model = build_model(config, data.manifest.num_embeddings, data.manifest.tasks, names)
    bidder = model_bidder(model, data, auctions.stages, 1000)
    candidates = next(auctions.blocks(10))
    with torch.no_grad():
        p_ctr, p_ctcvr = model(candidates.ids).double().sigmoid().view(10, 5, 2).unbind(2)
    expected = torch.minimum(p_ctr, p_ctcvr).numpy()  # y_cvr = p_ctcvr / p_ctr is at most 1
    np.testing.assert_allclose(bidder.score(candidates), expected, rtol=1e-5)
    seen = predict(model, data.load("validation"), 1000)
    scores = 1 / (1 + np.exp(-seen.logits.astype(np.float64).min(1)))
    assert bidder.weight == pytest.approx(seen.labels[:, 1].mean() / scores.mean())
    np.testing.assert_allclose(
        bidder.bids(candidates), bidder.weight * expected * candidates.price, rtol=1e-5
    )


def test_data_without_true_probabilities_are_refused(folder, data):
    with pytest.raises(
        ConfigError, match=r"abtest: expected .* whose schema has \[generate\], .*, got tiny"
    ):
        Auctions(PreparedData(folder), 5)
    data.manifest.tasks[1:] = ["purchase"]
    with pytest.raises(
        ConfigError, match="stage of the log, click, conversion, got click, purchase"
    ):
        Auctions(data, 5)
