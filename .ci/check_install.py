"""Checks the package that is installed, not the source folder: python .ci/check_install.py [_C]
[_autograd] [_cuda]

Names the extensions that must load; the others must not. Shows ``adaftr-fast info`` and trains an
embedding on the CPU.
"""

import sys
from pathlib import Path

import torch

import adaftr_fast
from adaftr_fast import _extension, cli

installed = Path(adaftr_fast.__file__)
if (
    Path(__file__).resolve().parents[1] in installed.resolve().parents
    and "site-packages" not in installed.parts
):
    sys.exit(
        f"check_install: expected an installed package, got the source folder {installed.parent}"
    )

cli.main(["info"])
built = {
    "_C": _extension.is_built(),
    "_autograd": _extension.has_cpp_gradients(),
    "_cuda": _extension.has_cuda_kernels(),
}
loaded = [name for name, found in built.items() if found]
if loaded != sys.argv[1:]:
    sys.exit(f"check_install: expected the extensions {sys.argv[1:]}, got {loaded}")

embedding = adaftr_fast.FusedEmbedding([5, 7], 4)
optimizer = adaftr_fast.optim.SGD(embedding, lr=1.0)
before = embedding.weight.detach().clone()
embedding(torch.tensor([[4, 6]])).sum().backward()  # rows 4 and 5 + 6
optimizer.step()
expected = before.index_add(0, torch.tensor([4, 11]), -torch.ones(2, 4))
torch.testing.assert_close(embedding.weight.detach(), expected)
print(f"check_install: {installed.parent} works")
