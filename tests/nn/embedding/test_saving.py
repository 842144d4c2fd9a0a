"""State dicts of FusedEmbedding, by torch, safetensors and torch.distributed.checkpoint."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_model, save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from adaftr_fast import FusedEmbedding, optim
from tests.tolerances import assert_same_bits

NAMES = ["user", "day", "item"]
SIZES = [5, 2, 9]
WIDTHS = pytest.mark.parametrize("widths", [[4, 4, 4], [4, 2, 4]], ids=["one width", "mixed"])


def trained(widths=4, names=NAMES, sizes=SIZES, seed=0):
    """Returns a table, whose rows have missed steps, and a layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        emb := FusedEmbedding(sizes, widths, field_names=names), nn.Linear(emb.out_features, 1)
    )
    optimizer = optim.Adam(model, lr=0.1)
    for number in range(3):
        optimizer.zero_grad()
        model(torch.full((1, 3), number % 2)).sum().backward()
        optimizer.step()
    return model


def by_safetensors(one, two, folder):
    save_model(one, str(folder / "model.safetensors"))
    assert load_model(two, str(folder / "model.safetensors")) == (set(), [])


def by_torch(one, two, folder):
    torch.save(one.state_dict(), folder / "model.pt")
    two.load_state_dict(torch.load(folder / "model.pt", weights_only=True))


def by_distributed_checkpoint(one, two, folder):
    dcp.save(get_model_state_dict(one), checkpoint_id=folder, no_dist=True)
    loaded = get_model_state_dict(two)
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    set_model_state_dict(two, loaded)


@WIDTHS
@pytest.mark.parametrize(
    "way", [by_safetensors, by_torch, by_distributed_checkpoint], ids=lambda way: way.__name__
)
def test_a_state_is_saved_and_loaded_whole(way, widths, tmp_path):
    one = trained(widths)
    two = trained(widths, seed=1)
    expected = trained(widths).eval()
    state = one.state_dict()
    assert set(state) == {name for name, _ in one.named_parameters()} | {"0._extra_state"}
    assert len({each.untyped_storage().data_ptr() for each in state.values()}) == len(state)
    way(one, two, tmp_path)
    for name in NAMES:
        assert torch.equal(two[0].field_weight(name), expected[0].field_weight(name))
    assert_same_bits(two.state_dict(), expected.state_dict())


@WIDTHS
def test_other_fields_are_errors(widths):
    saved = trained(widths)[0].state_dict()
    other = trained(widths, names=["user", "hour", "item"], seed=1)[0]
    before = copy.deepcopy(other)
    with pytest.raises(
        RuntimeError,
        match=r'(?s)Missing key\(s\).*"weight.hour".*Unexpected key\(s\).*"weight.day"',
    ):
        other.load_state_dict(saved)
    assert other.load_state_dict(saved, strict=False).missing_keys == ["weight.hour"]
    assert torch.equal(other.field_weight("hour"), before.field_weight("hour"))
    with pytest.raises(
        RuntimeError, match=r"mismatch for weight.day: \[2, \d\] in the checkpoint, \[3, \d\] here"
    ):
        trained(widths, sizes=[5, 3, 9])[0].load_state_dict(saved)
    widened = trained([4, 3, 4] if widths[1] == 2 else [4, 2, 4])[0]
    with pytest.raises(
        RuntimeError, match=r"mismatch for weight.day: \[2, \d\] in the checkpoint, \[2, \d\] here"
    ):
        widened.load_state_dict(saved)


@WIDTHS
def test_entries_of_earlier_versions_load(widths):
    one = trained(widths)
    two = trained(widths, seed=1)
    old = {f"0.weight.{name}": one[0].field_weight(name).clone() for name in NAMES}
    old |= {f"1.{name}": value for name, value in one[1].state_dict().items()}
    two.load_state_dict(old)
    assert_same_bits(two.state_dict(), one.state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight.day"):
        two.load_state_dict({**old, "0.weight.day": torch.zeros(1, 4)})
    with pytest.raises(RuntimeError, match=r'Missing key.*"0.weight.day"'):
        two.load_state_dict({key: value for key, value in old.items() if key != "0.weight.day"})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"0.weight.hour"'):
        two.load_state_dict({**old, "0.weight.hour": torch.zeros(2, 4)})


@WIDTHS
def test_averages_and_casts_of_states_load(widths):
    states = [trained(widths, seed=seed)[0].state_dict() for seed in range(3)]
    mean = {key: torch.stack([state[key].half() for state in states]).mean(0) for key in states[0]}
    loaded = trained(widths, seed=3)[0]
    loaded.load_state_dict(mean)
    assert all(torch.equal(p, mean[name].float()) for name, p in loaded.named_parameters())


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["same order", "other order"])
@pytest.mark.parametrize("earlier", [False, True], ids=["tables", "fields"])
@WIDTHS
def test_a_state_is_assigned_to_a_module_without_memory(widths, order, earlier):
    one = trained(widths)[0].bfloat16()
    ids = torch.tensor([[4, 1, 8], [0, 0, 3]])
    widths, names, sizes = ([each[f] for f in order] for each in (widths, NAMES, SIZES))
    two = FusedEmbedding(sizes, widths, field_names=names, device="meta", padding_idx=0)
    state = (
        {f"weight.{name}": one.field_weight(name) for name in NAMES}
        if earlier
        else one.state_dict()
    )
    two.load_state_dict(state, assign=True)
    assert {each.dtype for each in two.parameters()} == {torch.bfloat16}
    assert not any(each.is_meta for each in [*two.parameters(), *two.buffers()])
    for name in NAMES:
        assert torch.equal(two.field_weight(name), one.field_weight(name))
    made = FusedEmbedding(sizes, widths, field_names=names, dtype=torch.bfloat16, padding_idx=0)
    made.load_state_dict(state)
    assert torch.equal(two(ids[:, order]), made(ids[:, order]))


def test_a_table_without_memory_stays_missing_where_a_field_does():
    saved = trained(names=["user", "hour", "item"])[0].state_dict()
    two = FusedEmbedding(SIZES, 4, field_names=NAMES, device="meta")
    assert two.load_state_dict(saved, strict=False, assign=True).missing_keys == [
        "weight.day",
        "weight",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "can't decode"),
        (b"[{]", "Expecting property name"),
        (b'[{"name": "user", "rows": 5}]', "width"),
        (b'[{"name": "user", "rows": 5, "width": 4}]', r"weight must be \[5, 4\], got \[16, 4\]"),
    ],
)
def test_a_damaged_description_is_an_error(text, message):
    emb = trained()[0]
    damaged = torch.tensor(list(text))
    with pytest.raises(RuntimeError, match=f"_extra_state: .*{message}"):
        emb.load_state_dict({**emb.state_dict(), "_extra_state": damaged})
    state = emb.state_dict()
    state["_extra_state"] = state["_extra_state"][None]  # another shape of the same bytes loads
    assert str(emb.load_state_dict(state)) == "<All keys matched successfully>"
