"""docs/reference/ has an entry for each public name."""

import re
from pathlib import Path

import pytest

import adaftr_fast
import adaftr_fast.config
import adaftr_fast.models

PACKAGES = [adaftr_fast, adaftr_fast.config, adaftr_fast.models, adaftr_fast.optim]
PAGES = Path(__file__).parents[1] / "docs/reference"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda m: m.__name__)
def test_every_public_name_has_an_entry(package):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
    # the last part of each name
    entries = set(re.findall(r"^::: (?:\w+\.)*(\w+)$", text, re.MULTILINE))
    missing = set(package.__all__) - entries
    assert not missing, f"docs/reference: no entry for {sorted(missing)}"
