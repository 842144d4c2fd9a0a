"""Named groups of options."""

from __future__ import annotations

from typing import Any

from adaftr_fast.errors import ConfigError

PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {"tau": "fixed", "tau_fixed": 0.05, "contrast_epochs": 2.0, "contrast_rows": 16},
    "ecomm_ads": {"expert_hidden": [128], "tower_hidden": [128, 64, 32]},
}
"""Options of ``ModelConfig`` by the name of a preset.

- recommended: a contrast within blocks of 16 rows, whose temperature is constant and whose weight falls to 0 over two
  epochs (docs/results.md).
- ecomm_ads: the layer widths of the paper on Ecomm-Ads, d of Table 3 and the towers of Section 3.1.4. The defaults are
  those on Ali-CCP.
"""


def preset(name: Any) -> dict[str, Any]:
    """Returns the options of a preset. Raises ConfigError if there is none of that name."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"model.preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return {key: list(value) if isinstance(value, list) else value for key, value in PRESETS[name].items()}
