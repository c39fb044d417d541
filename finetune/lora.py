"""Low-rank updates: W = W0 + alpha / rank * B A, of which A and B are trained while W0 stays as it is.

LoRA (Hu et al. 2021, section 4.1), put on every linear layer of an encoder, the fused projections of attention and
pointwise convolutions. It works on the weights by themselves (torch's parametrizations), so it knows nothing about
what a layer does with them, nor about data, training or files.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skumatch.errors import ModelError
from skumatch.finetune.parts import Lora

# Matrices that layers hold without an nn.Linear around them: attention of torch and of open_clip, CLIP's projection.
_BARE = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "proj")
# Matrices stacked from several (query, key, value), by the name of the parameter or of its layer: each gets its own.
_STACKED = {"in_proj_weight": 3, "in_proj": 3, "qkv": 3, "kv": 2}


class LowRank(nn.Module):
    """The update of one weight: ``down`` is A and ``up`` is B.

    A weight stacked from ``parts`` matrices of equal height gets an update of ``rank`` for each of them: ``down``
    float (parts * rank, columns), ``up`` (rows, rank). ``order``: the parameters of the layer as it declared them.
    """

    def __init__(self, weight: Tensor, how: Lora, parts: int = 1, order: tuple[str, ...] = ()) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.parts, self.order = parts, order
        self.rank = min(how.rank, rows // parts, columns)  # more would be more weights than the matrix has itself
        self.scale = how.alpha / self.rank
        bound = columns**-0.5  # Kaiming's uniform bound with a = sqrt(5), which is how nn.Linear starts
        # Drawn on the CPU: the same seed starts the same update on every device.
        drawn = torch.empty(parts * self.rank, columns).uniform_(-bound, bound)
        self.down = nn.Parameter(drawn.to(weight.device, weight.dtype))
        self.up = nn.Parameter(torch.zeros(rows, self.rank, device=weight.device, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``weight``, of any shape (rows, ...), with the update added."""
        up = self.up.view(self.parts, -1, self.rank)
        down = self.down.view(self.parts, self.rank, -1)
        return weight + (torch.bmm(up, down) * self.scale).view(weight.shape)


def add_lora(image: nn.Module, how: Lora) -> list[str]:
    """Freeze ``image`` and put a low-rank update on each of its linear layers; return the names of their weights.

    Those are: nn.Linear, the projections that attention holds by itself, CLIP's ``proj`` and 1 x 1 convolutions
    without groups. A rank larger than a matrix allows is lowered to what it allows, its scale being alpha over that.
    A weight that two layers share is left alone. Nothing changes in what ``image`` answers until B is trained. A is
    drawn from torch's global generator. Raises ModelError where there is nothing to adapt.
    """
    shared = _shared(image)
    found = [
        (path, module, [name for name in _matrices(module) if id(getattr(module, name)) not in shared])
        for path, module in image.named_modules()
    ]
    if not any(names for _, _, names in found):
        raise ModelError("this network has no linear layer for LoRA to adapt", 'choose mode "projection" or "full"')
    image.requires_grad_(False)
    for path, module, names in found:
        order = tuple(name for name, _ in module.named_parameters(recurse=False))
        for name in names:
            weight = getattr(module, name)
            update = LowRank(weight, how, _parts(path, name, weight), order)
            parametrize.register_parametrization(module, name, update)
    return [f"{path}.{name}".removeprefix(".") for path, _, names in found for name in names]


def lora_names(image: nn.Module) -> list[str]:
    """Return the names of all A and B among the parameters of ``image``, none where ``add_lora`` was not called."""
    return [
        f"{path}.{name}"
        for path, module in image.named_modules()
        if isinstance(module, LowRank)
        for name, _ in module.named_parameters()
    ]


def merge_lora(image: nn.Module) -> None:
    """Add the updates to the weights they belong to, for good.

    Afterwards ``image`` has the layers, parameters and state dict (names, shapes, order) that it had before
    ``add_lora``, and gives the answers that it gave with the updates. Does nothing where there are none.
    """
    for module in list(image.modules()):
        updates = _updates(module)
        if updates:
            _merge(module, updates)


def merged_state(image: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that ``merge_lora`` would leave, without changing ``image`` or sharing its memory."""
    merged = copy.deepcopy(image)
    merge_lora(merged)
    return dict(merged.state_dict())


def _matrices(module: nn.Module) -> list[str]:
    """Return the names of the parameters of ``module`` itself that are matrices to adapt."""
    if parametrize.is_parametrized(module):
        return []
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    if pointwise or isinstance(module, nn.Linear):
        return ["weight"]
    return [name for name, p in module.named_parameters(recurse=False) if name in _BARE and p.ndim == 2]


def _parts(path: str, name: str, weight: Tensor) -> int:
    parts = _STACKED.get(name) or _STACKED.get(path.rpartition(".")[2], 1)
    return parts if weight.shape[0] % parts == 0 else 1


def _shared(image: nn.Module) -> set[int]:
    """Return the ids of the parameters that more than one module holds: an update would be that of one of them."""
    seen: set[int] = set()
    twice: set[int] = set()
    for module in image.modules():
        for parameter in module.parameters(recurse=False):
            (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _updates(module: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    """Return, per adapted parameter of ``module`` itself, its original and update."""
    entries = getattr(module, "parametrizations", None)
    if not isinstance(entries, nn.ModuleDict):
        return {}
    lists = {name: e for name, e in entries.items() if isinstance(e, parametrize.ParametrizationList)}
    return {name: entry for name, entry in lists.items() if isinstance(entry[0], LowRank)}


@torch.no_grad()
def _merge(module: nn.Module, updates: dict[str, parametrize.ParametrizationList]) -> None:
    """Make the adapted parameters of ``module`` plain ones again, in the order in which it declared them.

    Not by ``remove_parametrizations``: that takes the property off the class, which deep copies of the module share.
    """
    order: tuple[str, ...] = ()
    plain: dict[str, nn.Parameter] = {}
    for name, entry in updates.items():
        original, update = entry.original, entry[0]
        if isinstance(original, nn.Parameter) and isinstance(update, LowRank):
            original.copy_(update(original))
            plain[name], order = original, update.order
    before = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = before
    for name in order:
        parameter = plain[name] if name in plain else getattr(module, name)
        if name not in plain:
            delattr(module, name)
        module.register_parameter(name, parameter)
