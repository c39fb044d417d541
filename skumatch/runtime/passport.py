"""What an exported network says of itself: enough to answer crops with the file alone.

Kept as JSON under ``skumatch`` in the metadata of an ONNX file, and beside engines that have none.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch.errors import ModelError
from skumatch.spec import Spec

if TYPE_CHECKING:
    from skumatch.runtime.guard import Guard

KEY = "skumatch"
FORMAT = 1
WHOLE = "image"  # the input of a network that takes pictures of any size, in its facts under "input"


@dataclass(frozen=True)
class Passport:
    """``spec`` of the encoder, its precision included; its ``guard``, None without; ``facts``: where it comes from."""

    spec: Spec
    guard: Guard | None
    facts: dict[str, Any]

    def to_json(self) -> str:
        """Return it as JSON text."""
        guard = None if self.guard is None else _guard_json(self.guard)
        return json.dumps({"format": FORMAT, "spec": self.spec.to_json(), "guard": guard, "facts": self.facts})

    def of_pixels(self, source: str) -> Passport:
        """Return it. Raises ModelError where the network takes whole pictures; ``source`` names it in the error."""
        if self.facts.get("input") == WHOLE:
            raise ModelError(f"{source} takes whole pictures, not pixels", "give the file without the resize inside")
        return self

    @staticmethod
    def read(text: str | None, source: str) -> Passport:
        """Read ``to_json`` text; ``source`` names the file in errors. Raises ModelError."""
        try:
            found = json.loads(text or "")
            if found["format"] != FORMAT:
                raise ModelError(f"{source} was exported by another version", "export it again")
            guard = None if found["guard"] is None else _guard(found["guard"])
            return Passport(Spec.from_json(found["spec"]), guard, found["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{source} was not written by `skumatch export`", "export the model again") from error


def _guard_json(guard: Guard) -> dict[str, Any]:
    centres = np.ascontiguousarray(guard.centres.detach().cpu().numpy(), "<f4")
    middle = guard.middle
    return {
        "centres": base64.b64encode(centres.tobytes()).decode(),
        "dim": centres.shape[1],
        "threshold": guard.threshold,
        "softness": guard.softness,
        "middle": middle
        and {"width": middle.width, "threshold": middle.threshold, "far": middle.far, "near": middle.near},
    }


def _guard(found: dict[str, Any]) -> Guard:
    """Return a guard that turns rows into rows to ask with; what makes rows is inside the network."""
    import torch
    from torch import nn

    from skumatch.runtime.guard import Guard, Middle

    centres = np.frombuffer(base64.b64decode(found["centres"]), "<f4").reshape(-1, found["dim"])
    middle, how = None, found["middle"]
    if how is not None:
        middle = Middle(nn.Linear(1, how["width"], bias=False), how["threshold"], how["far"], how["near"])
    return Guard(torch.from_numpy(centres.copy()), found["threshold"], found["softness"], middle=middle)
