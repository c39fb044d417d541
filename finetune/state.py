"""All that a fine-tune carries from step to step, and its checkpoints: safetensors and JSON, never pickle."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skumatch import artefact
from skumatch.errors import ArtefactError
from skumatch.finetune.lora import add_lora, merged_state
from skumatch.finetune.norms import freeze_norms, norms_of
from skumatch.finetune.objectives.base import Setting
from skumatch.finetune.objectives.build import objectives
from skumatch.finetune.objectives.clip import text_parameters
from skumatch.finetune.params import frozen_modules, is_transformer, parameter_groups, trainable
from skumatch.finetune.ranks import Ranks
from skumatch.finetune.sampler import Centres
from skumatch.runtime.torch import Network, memory_format
from skumatch.spec import Vectors

MANIFEST = "checkpoint.json"
TENSORS = "tensors.safetensors"
State = dict[str, Tensor]


class TrainState:
    """Network, training head, objectives, optimiser, averaged weights and the best ones so far."""

    def __init__(self, setting: Setting) -> None:
        recipe, tower = setting.recipe, setting.tower
        torch.manual_seed(recipe.seed)
        self.recipe, self.tower, self.device = recipe, tower, setting.device
        layout = memory_format(tower.image)
        tower.image.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        self.network = Network(tower.image, tower.preprocess).to(self.device)
        self.head = nn.Linear(tower.dim, recipe.embedding, bias=False).to(self.device)
        nn.init.orthogonal_(self.head.weight)
        self.untouched = {name: tensor.detach().cpu().clone() for name, tensor in tower.image.state_dict().items()}
        self.objectives = objectives(setting).to(self.device)
        if recipe.mode == "lora":
            add_lora(tower.image, recipe.lora)
        self.trained = trainable(tower.image, recipe.mode, recipe.freeze)
        self.trained_weights = sum(dict(tower.image.named_parameters())[name].numel() for name in self.trained)
        self.text = nn.ParameterDict()
        if recipe.objectives.clip and recipe.clip.train_text:
            self.text = nn.ParameterDict({name.replace(".", "/"): p for name, p in text_parameters(tower)})
        self.average = nn.ModuleDict({"image": copy.deepcopy(tower.image), "head": copy.deepcopy(self.head)})
        self.average.requires_grad_(False).eval()
        self.optimizer = self._optimizer(tower.image)
        in_bf16 = recipe.compute.precision == "auto" and trains_in_bf16(tower.image, self.device)
        self.low = copy.deepcopy(tower.image).to(torch.bfloat16) if in_bf16 else None
        trained = tower.image if self.low is None else self.low
        self.forward: Callable[[Tensor], Any] = torch.compile(trained) if recipe.compute.compile else trained
        self.centres = Centres(len(setting.counts), recipe.embedding, self.device)
        self.neighbours: Vectors | None = None  # the centres that the running epoch's look-alikes come from
        self.epoch = 0  # completed epochs
        self.step = 0  # completed steps within the running epoch
        self.updates = 0
        self.losses: dict[str, float] = {}  # sums over the running epoch's steps, by name
        self.counted = 0  # how many steps those are
        self.history: list[dict[str, Any]] = []
        self.best: State | None = None
        self.best_score = -1.0
        self.last: list[State] = []  # averaged image weights of the last epochs, for the soup

    def _optimizer(self, image: nn.Module) -> torch.optim.AdamW:
        recipe = self.recipe
        lr = recipe.lr_transformer if is_transformer(image) else recipe.lr_conv
        groups = parameter_groups(image, self.trained, lr, recipe.layer_decay, recipe.weight_decay)
        groups.append({"params": list(self.head.parameters()), "lr": recipe.lr_head})
        groups += self.objectives.parameter_groups(recipe.lr_head)
        groups = [{**group, "base_lr": group["lr"]} for group in groups]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True)

    def features(self, pictures: Tensor) -> Tensor:
        """Map float (N, 3, S, S) pictures in 0..255 to (N, D) features, in bf16 where that is faster."""
        if self.low is None:
            found: Tensor = self.forward(self.network.scaled(pictures))
            return found
        masters = [p.detach() for p in self.image.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(list(self.low.parameters()), masters)  # casts; autocast would do so in every layer
        scaled = (pictures - self.network.mean) / self.network.std
        result: Tensor = self.forward(scaled.to(torch.bfloat16))
        return result.float()

    @property
    def in_bf16(self) -> bool:
        """Whether the encoder works in bf16: a copy of it on a CPU, or autocast on a GPU."""
        return self.low is not None or self._mixes()

    def _mixes(self) -> bool:
        asked = self.recipe.compute.precision == "auto"
        return asked and self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def autocast(self) -> AbstractContextManager[object]:
        """Return what to compute losses within. (On CPUs autocast is slower than float32.)"""
        return torch.autocast("cuda", torch.bfloat16) if self._mixes() else nullcontext()

    def dropped(self, features: Tensor, rank: int, counts: Sequence[int]) -> Tensor:
        """Return ``features`` (N, D) after dropout, as if the rows of all processes were in one.

        ``counts``: how many each has. To be called after seeding torch alike in every process.
        """
        share = self.recipe.dropout
        if not share:
            return features
        mask = F.dropout(features.new_ones(sum(counts), features.shape[1]), share)
        return features * mask[sum(counts[:rank]) :][: len(features)]

    def clip_gradients(self, ranks: Ranks) -> Tensor:
        """Add up the processes' gradients, clip them and return the norm that they had, a scalar."""
        learning = [p for p in self.parameters() if p.grad is not None]
        ranks.total(p.grad for p in learning if p.grad is not None)
        norm: Tensor = torch.nn.utils.clip_grad_norm_(learning, self.recipe.clip_norm)
        return norm

    def settle(self, ranks: Ranks) -> None:
        """Take the optimiser's step and move the averaged weights."""
        self.optimizer.step()
        if not ranks.alone:
            norms = [norm for norm in norms_of(self.image) if norm.training]
            ranks.mean(t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None)
        self.update_average()

    def collect_gradients(self) -> None:
        """Bring the gradients of the bf16 copy, where there is one, to the parameters that the optimiser changes."""
        if self.low is not None:
            for master, copied in zip(self.image.parameters(), self.low.parameters(), strict=True):
                master.grad = None if copied.grad is None else copied.grad.float()
                copied.grad = None

    @property
    def image(self) -> nn.Module:
        """The image tower being trained."""
        return self.network.image

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield every parameter that is trained."""
        yield from (p for group in self.optimizer.param_groups for p in group["params"])

    def set_stage(self, head_only: bool) -> None:
        """Freeze the image tower (its batch statistics too) in stage 1, free what the mode trains in stage 2."""
        trained = set() if head_only else set(self.trained)
        for module in (self.image, self.low):
            if module is None:
                continue
            module.train(bool(trained))
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in trained)
            for frozen in frozen_modules(module, self.trained) if trained else ():
                frozen.eval()
            if self.recipe.batch_norm == "frozen" or self.recipe.mode != "full":
                freeze_norms(module)

    def scale_lr(self, factor: float) -> None:
        """Set every learning rate to its base times ``factor``."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights towards the current ones; the decay grows to the recipe's over the first steps."""
        self.updates += 1
        decay = min(self.recipe.ema, (1 + self.updates) / (10 + self.updates))
        targets, sources = [], []
        for averaged, trained in ((self.average["image"], self.image), (self.average["head"], self.head)):
            for own, other in zip(averaged.state_dict().values(), trained.state_dict().values(), strict=True):
                if own.is_floating_point():
                    targets.append(own)
                    sources.append(other)
                else:
                    own.copy_(other)
        torch._foreach_lerp_(targets, sources, 1 - decay)

    def count(self, losses: dict[str, float]) -> None:
        """Add a step's ``losses`` to those of the running epoch."""
        self.losses = {name: self.losses.get(name, 0.0) + value for name, value in losses.items()}
        self.counted += 1

    def mean_losses(self) -> dict[str, float]:
        """Return the means over the running epoch's steps so far, and forget them."""
        means = {name: total / self.counted for name, total in self.losses.items()}
        self.losses, self.counted = {}, 0
        return means

    def keep_if_best(self, score: float | None) -> None:
        """Keep a copy of the averaged weights when ``score`` is at least the best so far (None: always), and those of
        the last epochs where a soup is asked for."""
        if score is None or score >= self.best_score:
            self.best_score = self.best_score if score is None else score
            self.best = {name: tensor.detach().clone() for name, tensor in self.average.state_dict().items()}
        if self.recipe.after.soup > 1:
            merged = merged_state(self.average["image"])
            self.last.append({name: tensor.detach().cpu().clone() for name, tensor in merged.items()})
            self.last = self.last[-self.recipe.after.soup :]

    def take_best(self) -> None:
        """Put the best averaged weights into the averaged modules."""
        if self.best is not None:
            self.average.load_state_dict(self.best)

    def save(self, store: Path) -> None:
        """Publish a checkpoint in ``store`` and drop older ones. Raises ArtefactError when the disk refuses."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        version = artefact.next_version(store)
        with artefact.staged(store, version) as stage:
            try:
                save_file(self._tensors(), stage.folder / TENSORS)
            except SafetensorError as error:
                raise ArtefactError(f"cannot write {store / version} ({error})", "free some space, --resume") from error
            facts = {
                "epoch": self.epoch,
                "step": self.step,
                "updates": self.updates,
                "losses": self.losses,
                "counted": self.counted,
                "history": self.history,
                "best_score": self.best_score,
                "last": len(self.last),
            }
            artefact.seal(stage.folder, MANIFEST, facts)
        artefact.set_current(store, version)
        for older in artefact.versions(store)[:-1]:
            shutil.rmtree(store / older)

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "image": self.image,
            "head": self.head,
            "objectives": self.objectives,
            "average": self.average,
            "text": self.text,
        }

    def _tensors(self) -> State:
        found = {f"{n}.{k}": t for n, module in self._modules().items() for k, t in module.state_dict().items()}
        found |= {f"best.{k}": t for k, t in (self.best or {}).items()}
        found |= {f"last{i}.{k}": t for i, state in enumerate(self.last) for k, t in state.items()}
        found |= {f"centres.{k}": t for k, t in self.centres.state_dict().items()}
        if self.neighbours is not None:
            found["neighbours"] = torch.from_numpy(self.neighbours)
        for position, parameter in enumerate(self.parameters()):
            found |= {f"optimizer.{position}.{k}": t for k, t in self.optimizer.state.get(parameter, {}).items()}
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}

    def restore(self, store: Path | None, ranks: Ranks | None = None) -> bool:
        """Continue from the checkpoint in ``store``; return whether there was one. Raises ArtefactError if corrupt.

        Of several processes the first reads it and tells the others.
        """
        from safetensors.torch import load_file

        others = ranks or Ranks()
        folder = artefact.current(store) if store is not None and others.first else None
        facts = others.share(None if folder is None else artefact.read_manifest(folder, MANIFEST))
        if facts is None:
            return False
        read = {} if folder is None else load_file(folder / TENSORS, device=str(self.device))
        tensors = others.share_tensors(read, self.device)
        for name, module in self._modules().items():
            module.load_state_dict(_under(tensors, f"{name}."))
        self.best = _under(tensors, "best.") or None
        self.last = [
            {k: t.cpu() for k, t in _under(tensors, f"last{i}.").items()} for i in range(int(facts.get("last", 0)))
        ]
        self.centres.load_state_dict(_under(tensors, "centres."))
        self.neighbours = tensors["neighbours"].cpu().numpy() if "neighbours" in tensors else None
        for position, parameter in enumerate(self.parameters()):
            state = _under(tensors, f"optimizer.{position}.")
            if state:
                self.optimizer.state[parameter] = {key: _laid_out(tensor, parameter) for key, tensor in state.items()}
        self.epoch, self.step, self.updates = facts["epoch"], facts["step"], facts["updates"]
        self.losses, self.counted = facts.get("losses", {}), facts.get("counted", 0)  # older ones end with an epoch
        self.history, self.best_score = facts["history"], facts["best_score"]
        return True


def trains_in_bf16(image: nn.Module, device: torch.device) -> bool:
    """Return whether a bf16 copy of the network trains faster on this CPU: transformers, with AVX-512 BF16 or AMX.

    (Measured on 2 cores: 2.1 to 2.9 times the rate for ViTs, 0.76 times for MobileNetV2. On GPUs autocast does it.)
    """
    if device.type != "cpu" or not is_transformer(image):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` in the memory layout of ``like``: fused optimisers walk both in the order of memory."""
    return torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor


def _under(tensors: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Write one JSON line per finished epoch."""
    artefact.write_file(path, "".join(json.dumps(record, sort_keys=True) + "\n" for record in history).encode())
