"""Small models in float64 and batches for them, with weights large enough for the networks to be
nonlinear.
"""

from typing import get_args, get_type_hints

import torch

from adaftr_fast.config.model import MODELS as KNOWN
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models import AdaFTR, ModelConfig, MultiTaskModel, build_model

SIZES = [7, 5, 11]
TWO = ["click", "conversion"]
THREE = ["click", "view", "conversion"]
CHOICES = get_type_hints(ModelConfig)
BACKBONES = list(get_args(CHOICES["backbone"]))
DEEP = [name for name in KNOWN if name not in ("adaftr", "linear")]
MODELS = [*DEEP, "linear"]
SMALL = ModelConfig(embedding_dim=4)


def batch(
    rows: int = 40,
    tasks: int = 2,
    seed: int = 0,
    weighted: bool = False,
    dtype=torch.float64,
    sizes=SIZES,
) -> Batch:
    """Returns a batch from a funnel: each task's event requires the previous task's."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, n, (rows,), generator=g) for n in sizes], 1).int()
    labels = torch.rand(rows, tasks, generator=g).lt(0.6).to(dtype).cumprod(1)
    weight = torch.rand(rows, generator=g, dtype=dtype) if weighted else None
    return Batch(ids=ids, labels=labels, group=None, weight=weight)


def model(name: str = "adaftr", tasks: list[str] = TWO, **options) -> MultiTaskModel:
    """Returns a model in float64 with random weights."""
    torch.manual_seed(0)
    built = build_model(ModelConfig(name=name, **options), SIZES, tasks).double()
    for parameter, p in built.named_parameters():
        if "embedding" in parameter:
            torch.nn.init.normal_(p)
        elif "edges" in parameter or "alpha" in parameter:  # initialised to one value
            p.data += torch.randn_like(p)
    return built


def adaftr(**options) -> AdaFTR:
    return model("adaftr", **options)
