"""Low-rank adapters through peft: injected, trained in part, merged, and saved as peft's own files.

The adapted module computes ``W x + s·B(A x)`` with ``A [rank, in]``, ``B [out, rank]`` and ``s = alpha / rank``. When
only the first slots of the rank are trained, they are one peft adapter and the others a second one that runs beside it,
so that gradients and optimizer state exist for the trained slots alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fedge.core.fold import Pair
from fedge.core.payload import Tree
from fedge.errors import MethodError, MissingError
from fedge.models.anatomy import anatomy
from fedge.models.names import ADAPTER_PREFIX, RESTING, TRAINED, canonical
from fedge.models.share import share

#: Backbone class and the modules of a block that are adapted when nothing else is said: query and value.
DEFAULT_TARGETS = {
    "ViTModel": ["q_proj", "v_proj"],
    "BertModel": ["query", "value"],
    "RobertaModel": ["query", "value"],
    "XLMRobertaModel": ["query", "value"],
    "DistilBertModel": ["q_lin", "v_lin"],
    "MPNetModel": ["q", "v"],
    "GPT2Model": ["c_attn"],
    "LlamaModel": ["q_proj", "v_proj"],
}


@dataclass(frozen=True)
class Factors:
    """One module's adapter: ``a [rank, in]``, ``b [out, rank]`` and the scale of their product."""

    a: Tensor
    b: Tensor
    scale: float

    def delta(self) -> Tensor:
        """What the adapter adds to the weight, ``[out, in]``."""
        return (self.b @ self.a) * self.scale


def inject(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None = None,
    train_rank: int | None = None,
    layers: Collection[int] | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Put adapters of ``rank`` onto the target modules of every block, in place; returns the model.

    Afterwards exactly the adapters of the blocks in ``layers`` (0-based; None: all) require a gradient, of each the
    first ``train_rank`` slots (None: all). B starts at zero, so the model's function is unchanged; A is drawn from
    torch's global state and is the same whatever ``train_rank`` and ``layers`` are. ``targets``: last parts of module
    names (None: query and value). Raises MethodError when nothing matches or a number is out of range.
    """
    trained = rank if train_rank is None else train_rank
    if not 1 <= trained <= rank:
        raise MethodError(f"{trained} of {rank} rank slots can't be trained")
    modules, prefixes = _targets(model, targets)
    if prefixes is not None and layers is not None and not set(layers) <= set(range(len(prefixes))):
        raise MethodError(f"blocks {sorted(layers)} are not all there: the model has {len(prefixes)}")
    if prefixes is None and layers is not None:
        raise MissingError(f"the blocks of a {type(model).__name__} are not known, so none can be chosen")
    conv = _transposed(model, modules)
    _add(model, TRAINED, trained, modules, conv, dropout)
    if trained < rank:
        _add(model, RESTING, rank - trained, modules, conv, dropout)
    _initialise(model, alpha / rank)
    chosen = None if layers is None else tuple(prefixes[index] for index in sorted(layers))  # type: ignore[index]
    for name, parameter in model.named_parameters():
        slot = ".lora_" in name and f".{TRAINED}." in name
        parameter.requires_grad_(slot and (chosen is None or name.startswith(chosen)))
    return model


def adapted(model: nn.Module) -> dict[str, Any]:
    """The modules that hold an adapter (``peft.tuners.lora.LoraLayer``), by their name in the base model."""
    return {canonical(name): module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def factors(model: nn.Module) -> dict[str, Factors]:
    """Every adapter with all of its slots, by the name of its module in the base model; detached."""
    found = {}
    for name, layer in adapted(model).items():
        a = [layer.lora_A[adapter].weight.detach() for adapter in layer.active_adapters]
        b = [layer.lora_B[adapter].weight.detach() for adapter in layer.active_adapters]
        whole_a, whole_b = (a[0], b[0]) if len(a) == 1 else (torch.cat(a), torch.cat(b, dim=1))
        found[name] = Factors(whole_a, whole_b, float(layer.scaling[TRAINED]))
    return found


def paired(tree: Mapping[str, Tensor]) -> dict[str, Pair]:
    """The adapters' factors among tensors by payload name, as (A, B) by the name of their module in the base."""
    mark = ".lora_A.weight"
    found = {}
    for name, a in tree.items():
        if name.endswith(mark):
            module = name.removesuffix(mark)
            found[module.removeprefix(ADAPTER_PREFIX)] = (a, tree[f"{module}.lora_B.weight"])
    return found


def named(pairs: Mapping[str, Pair]) -> Tree:
    """The inverse of ``paired``: factors by payload name."""
    return {
        f"{ADAPTER_PREFIX}{module}.lora_{letter}.weight": factor
        for module, pair in pairs.items()
        for letter, factor in zip("AB", pair, strict=True)
    }


def absorbed(model: nn.Module, pairs: Mapping[str, Pair], weights: Mapping[str, Tensor]) -> Tree:
    """The weights of the named modules with ``B A`` added, by payload name; nothing is written.

    ``weights``: what stands for the model's own weights, by payload name, where that has moved before. The layer's
    orientation is minded. Adapters that the model has are left out of it. One new tensor is made for each weight.
    """
    found = {}
    for name, module, left, right in _oriented(model, pairs):
        old = weights.get(f"{name}.weight", module.weight.detach())
        found[f"{name}.weight"] = torch.addmm(old, left.to(old.dtype), right.to(old.dtype))
    return found


def products(model: nn.Module, pairs: Mapping[str, Pair]) -> Tree:
    """``B A`` of every named module as its weight has it, by payload name; the layer's orientation is minded."""
    return {f"{name}.weight": left @ right for name, _, left, right in _oriented(model, pairs)}


def _oriented(model: nn.Module, pairs: Mapping[str, Pair]) -> Iterator[tuple[str, Any, Tensor, Tensor]]:
    """Each pair with its module and the two factors of what is added to that module's weight."""
    modules = {canonical(name): each for name, each in model.named_modules() if not isinstance(each, LoraLayer)}
    for name, (a, b) in pairs.items():
        module: Any = modules[name]
        yield (name, module, a.T, b.T) if _is_conv(module) else (name, module, b, a)


def merge(model: nn.Module) -> nn.Module:
    """A plain model with the adapters added to their weights; structure and names are the base's.

    The model itself is left as it is; all but the merged weights shares memory with it.
    """
    plain = strip(model)
    modules = dict(plain.named_modules())
    for name, found in factors(model).items():
        module: Any = modules[name]
        delta = found.delta()
        if _is_conv(module):
            delta = delta.T
        module.weight = nn.Parameter(module.weight.detach() + delta.to(module.weight.dtype), requires_grad=False)
    return plain


def strip(model: nn.Module) -> nn.Module:
    """The base model without its adapters, sharing memory with ``model``, which is left as it is."""
    plain = share(model)
    for name, layer in [(name, module) for name, module in plain.named_modules() if isinstance(module, LoraLayer)]:
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, layer.get_base_layer())
    for module in plain.modules():
        for mark in ("peft_config", "_hf_peft_config_loaded"):
            module.__dict__.pop(mark, None)
    return plain


def _targets(model: nn.Module, targets: Sequence[str] | None) -> tuple[list[str], list[str] | None]:
    """Full names of the modules to adapt, and the prefixes of the blocks where these are known."""
    try:
        parts = anatomy(model)
    except MissingError:
        if targets is None:
            raise
        prefixes = None
    else:
        prefixes = parts.layer_prefixes
        targets = targets if targets is not None else DEFAULT_TARGETS[type(parts.core).__name__]
    modules = [
        name
        for name, module in model.named_modules()
        if name.endswith(tuple(f".{target}" for target in targets))
        and (prefixes is None or name.startswith(tuple(prefixes)))
        and (isinstance(module, nn.Linear) or _is_conv(module))
    ]
    if not modules:
        raise MethodError(f"no linear module of {type(model).__name__} is called {' or '.join(targets)}")
    return modules, prefixes


def _is_conv(module: nn.Module) -> bool:
    """Whether this is the linear layer of GPT-2, whose weight is stored transposed."""
    return type(module).__name__ == "Conv1D"


def _transposed(model: nn.Module, modules: list[str]) -> bool:
    kinds = {_is_conv(model.get_submodule(name)) for name in modules}
    if len(kinds) > 1:
        raise MethodError("targets mix two kinds of linear layers")
    return kinds.pop()


def _add(model: nn.Module, adapter: str, rank: int, modules: list[str], conv: bool, dropout: float) -> None:
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(modules), lora_dropout=dropout, fan_in_fan_out=conv, bias="none"
    )
    # peft can't place an adapter while tensors are faked; what it makes on meta is replaced afterwards in any case
    with warnings.catch_warnings(), unset_fake_temporarily():
        warnings.simplefilter("ignore")  # peft points out that there already is an adapter
        # on meta, so that nothing is drawn from the global state: the draws below don't depend on how slots are split
        inject_adapter_in_model(config, _tree(model), adapter_name=adapter, low_cpu_mem_usage=True)


def _tree(model: nn.Module) -> nn.Module:
    """The module tree that peft can read: the blocks of a model that wraps another are those of its base."""
    while type(model).__name__ in ("MultiExit", "Prompted", "Rewritten"):
        model = model.base  # type: ignore[assignment]
    return model


def _initialise(model: nn.Module, scale: float) -> None:
    for layer in adapted(model).values():
        names = list(layer.lora_A)
        weight = layer.get_base_layer().weight
        ranks = [layer.r[name] for name in names]
        a = torch.empty(sum(ranks), layer.in_features, dtype=weight.dtype, device=weight.device)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        for name, piece in zip(names, a.split(ranks), strict=True):
            b = torch.zeros(layer.out_features, len(piece), dtype=weight.dtype, device=weight.device)
            layer.lora_A[name].weight = nn.Parameter(piece.clone())
            layer.lora_B[name].weight = nn.Parameter(b)
            layer.scaling[name] = scale
        layer.set_adapter(names)
