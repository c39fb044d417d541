"""Published encoders to set beside the user's model: CLIP and FashionCLIP, where their weights can be had.

It opens them untouched, with their published preprocessing. It knows nothing about data or measures.
"""

from __future__ import annotations

from collections.abc import Sequence

from skumatch.encoder import Encoder, open_encoder
from skumatch.errors import ConfigError, HubError, nearest
from skumatch.towers.build import ModelSource

# CLIP: Radford et al., 2021, https://arxiv.org/abs/2103.00020. FashionCLIP: Chia et al., 2022,
# https://arxiv.org/abs/2204.03972; since March 2023 its hub repository holds version 2.0, which starts from LAION's
# ViT-B/32 and not from OpenAI's.
BASELINES: dict[str, str] = {
    "clip": "open_clip:ViT-B-32/openai",
    "fashion-clip": "hf:patrickjohncyh/fashion-clip",
}


def open_baselines(names: Sequence[str], device: str = "auto") -> tuple[list[tuple[str, Encoder]], list[str]]:
    """Open the baselines ``names`` in that order, each once.

    Returns (name, encoder) for those whose weights are on this machine or can be fetched, and one line for each that
    cannot be had. Raises ConfigError for an unknown name before anything is fetched, DeviceError when ``device`` is
    not granted; a broken download raises too, for it is not the same as weights out of reach.
    """
    for name in names:
        if name not in BASELINES:
            near = nearest(name, list(BASELINES), n=1)
            hint = f"did you mean {near}? " if near else ""
            raise ConfigError(f"unknown baseline '{name}'", f"{hint}choose {', '.join(BASELINES)}")
    found: list[tuple[str, Encoder]] = []
    missing: list[str] = []
    for name in dict.fromkeys(names):
        try:
            found.append((name, open_encoder(ModelSource(BASELINES[name]), device)))
        except HubError as error:
            missing.append(f"baseline {name} ({BASELINES[name]}) is left out: {error.what}")
    return found, missing
