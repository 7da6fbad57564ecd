"""The parts of a transformer under one set of names: embed, blocks, final norm, pooling, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.errors import MissingError
from fedge.models.share import share

Inputs = Mapping[str, Any]


class Anatomy:
    """Where the parts of one model lie.

    For every model ``head(pool(finish(block(depth-1, …block(0, embed(inputs), m)…, m)), inputs))`` with
    ``m = mask(inputs, embed(inputs))`` is what its forward returns as logits (a bare backbone: as last hidden state).
    Shapes: hidden ``[rows, tokens, hidden]``; pooled ``[rows, hidden]``, or hidden's own for language models and bare
    backbones.
    """

    #: Path of the list of blocks inside the backbone.
    blocks_path: ClassVar[str]
    #: Name of the norm after the last block inside the backbone; empty where there is none.
    norm_name: ClassVar[str] = ""
    #: How many tokens stay before a prompt: a class token that pooling looks for in its place.
    leading: ClassVar[int] = 0

    def __init__(self, model: nn.Module, core: nn.Module, prefix: str):
        self.model = model
        self.core: Any = core
        self.prefix = prefix
        self.config: Any = core.config

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The blocks, first to last."""
        found: Sequence[nn.Module] = self.core.get_submodule(self.blocks_path)
        return found

    @property
    def layer_prefixes(self) -> list[str]:
        """What the names of each block's tensors begin with, such as 'vit.layers.0.'."""
        return [f"{self.prefix}{self.blocks_path}.{index}." for index in range(self.depth)]

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """What the names of the classifier's tensors begin with; empty for a bare backbone."""
        return ()

    @property
    def idle_prefixes(self) -> tuple[str, ...]:
        """What the names of tensors begin with that no forward pass reads."""
        return ()

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.layers)

    @property
    def hidden(self) -> int:
        """The width of the hidden state."""
        return int(self.config.hidden_size)

    def embed(self, inputs: Inputs) -> Tensor:
        """What enters the first block."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> Tensor:
        """The word vectors ``[words, hidden]``. Raises MissingError for a model that reads no words."""
        raise MissingError(f"a {type(self.model).__name__} reads no words")

    def prompted(self, inputs: Inputs, prompt: Tensor) -> Tensor:
        """What enters the first block when vectors ``prompt [tokens, hidden]`` come first, or after ``leading``."""
        return self.placed(_before(prompt, functional.embedding(inputs["input_ids"], self.vocabulary)))

    def placed(self, vectors: Tensor) -> Tensor:
        """What enters the first block for vectors ``[rows, tokens, hidden]`` that stand for words."""
        return self.core.embeddings(inputs_embeds=vectors)

    def mask(self, inputs: Inputs, hidden: Tensor) -> Any:
        """What the blocks need besides the hidden state; the same for all of them."""
        from transformers.masking_utils import create_bidirectional_mask

        return create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=inputs.get("attention_mask")
        )

    def block(self, index: int, hidden: Tensor, mask: Any) -> Tensor:
        """One block of the model."""
        return self.through(self.layers[index], hidden, mask)

    def through(self, layer: nn.Module, hidden: Tensor, mask: Any) -> Tensor:
        """Through any block of this model's kind."""
        return _tensor(layer(hidden, mask))

    @property
    def norm(self) -> nn.Module | None:
        """The norm after the last block, where there is one."""
        found: nn.Module | None = getattr(self.core, self.norm_name, None) if self.norm_name else None
        return found

    @property
    def norm_prefix(self) -> tuple[str, ...]:
        """What the names of that norm's tensors begin with; empty where there is none."""
        return (f"{self.prefix}{self.norm_name}.",) if self.norm_name else ()

    @property
    def linear(self) -> nn.Linear | None:
        """The classifier, where the head is that one linear layer on what ``pool`` gives."""
        return None

    @property
    def per_token(self) -> bool:
        """Whether the head gives logits at every token (language models) instead of one row of them."""
        return False

    def finish(self, hidden: Tensor) -> Tensor:
        """Through the norm after the last block, where there is one."""
        norm = self.norm
        return hidden if norm is None else norm(hidden)

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        """From tokens to what the head takes."""
        return hidden

    def pushed(self, hidden: Tensor, change: Tensor) -> Tensor:
        """The hidden state changed so that ``pool`` gives ``change`` (of its shape) more than before."""
        if change.dim() == hidden.dim():
            return hidden + change
        change = change.unsqueeze(1)
        if getattr(self.model, "pooling", None) == "mean":
            return hidden + change
        return torch.cat([hidden[:, :1] + change, hidden[:, 1:]], 1)

    def head(self, features: Tensor) -> Tensor:
        """Logits from what ``pool`` gave."""
        return features

    def forward(self, inputs: Inputs) -> Tensor:
        """The model's logits, part by part."""
        hidden = self.embed(inputs)
        mask = self.mask(inputs, hidden)
        for index in range(self.depth):
            hidden = self.block(index, hidden, mask)
        return self.head(self.pool(self.finish(hidden), inputs))


class _ViT(Anatomy):
    blocks_path = "layers"
    norm_name = "layernorm"
    leading = 1

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        return ("classifier.",) if self.model is not self.core else ()

    def embed(self, inputs: Inputs) -> Tensor:
        return self.core.embeddings(inputs["pixel_values"])

    @property
    def linear(self) -> nn.Linear | None:
        return _linear(self.model)

    def prompted(self, inputs: Inputs, prompt: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        return torch.cat([hidden[:, :1], _before(prompt, hidden[:, 1:])], 1)

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        return hidden[:, 0, :] if self.model is not self.core else hidden

    def head(self, features: Tensor) -> Tensor:
        return self.model.classifier(features) if self.model is not self.core else features  # type: ignore[operator]


class _Encoder(Anatomy):
    """What the text encoders share: the heads of their stock classes, and PooledClassifier's."""

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        model = self.model
        if model is self.core:
            return ()
        names = [name for name in _HEADS if hasattr(model, name)]
        prefixes = tuple(f"{name}." for name in names)
        pooler = getattr(self.core, "pooler", None)
        if pooler is not None and not hasattr(model, "pool"):
            return (f"{self.prefix}pooler.", *prefixes)
        return prefixes

    @property
    def idle_prefixes(self) -> tuple[str, ...]:
        # sentence encoders come with a pooler, and pool their tokens otherwise
        return (f"{self.prefix}pooler.",) if hasattr(self.model, "pool") else ()

    @property
    def linear(self) -> nn.Linear | None:
        return _linear(self.model) if hasattr(self.model, "pool") else None

    @property
    def per_token(self) -> bool:
        return self.model is not self.core and not hasattr(self.model, "classifier")

    @property
    def vocabulary(self) -> Tensor:
        words: Tensor = self.core.embeddings.word_embeddings.weight
        return words

    def embed(self, inputs: Inputs) -> Tensor:
        given = {name: inputs[name] for name in ("input_ids", "token_type_ids") if inputs.get(name) is not None}
        return self.core.embeddings(**given)

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        model: Any = self.model
        if hasattr(model, "pool"):
            return model.pool(hidden, inputs.get("attention_mask"))
        return hidden[:, 0] if hasattr(model, "classifier") else hidden

    def head(self, features: Tensor) -> Tensor:
        model: Any = self.model
        if model is self.core:
            return features
        if hasattr(model, "classifier"):
            return self._classify(features)
        return model.cls(features) if hasattr(model, "cls") else model.lm_head(features)

    def _classify(self, features: Tensor) -> Tensor:
        model: Any = self.model
        if hasattr(model, "pool"):
            return model.classifier(features)
        tokens = features.unsqueeze(1)  # the stock heads pick the first token themselves
        if getattr(self.core, "pooler", None) is None:
            return model.classifier(tokens)
        return model.classifier(model.dropout(self.core.pooler(tokens)))


class _Bert(_Encoder):
    blocks_path = "encoder.layer"


class _MPNet(_Encoder):
    blocks_path = "encoder.layer"

    def mask(self, inputs: Inputs, hidden: Tensor) -> Any:
        return super().mask(inputs, hidden), self.core.encoder.compute_position_bias(hidden)

    def through(self, layer: nn.Module, hidden: Tensor, mask: Any) -> Tensor:
        return _tensor(layer(hidden, *mask))


class _DistilBert(_Encoder):
    blocks_path = "transformer.layer"

    def embed(self, inputs: Inputs) -> Tensor:
        return self.core.embeddings(inputs["input_ids"])

    def placed(self, vectors: Tensor) -> Tensor:
        return self.core.embeddings(None, vectors)

    def head(self, features: Tensor) -> Tensor:
        model: Any = self.model
        if hasattr(model, "vocab_transform"):
            transformed = model.vocab_layer_norm(model.activation(model.vocab_transform(features)))
            return model.vocab_projector(transformed)
        return super().head(features)

    def _classify(self, features: Tensor) -> Tensor:
        model: Any = self.model
        if hasattr(model, "pool"):
            return model.classifier(features)
        return model.classifier(model.dropout(functional.relu(model.pre_classifier(features))))


class _Decoder(Anatomy):
    @property
    def head_prefixes(self) -> tuple[str, ...]:
        return tuple(f"{name}." for name in ("lm_head", "classifier") if hasattr(self.model, name))

    @property
    def linear(self) -> nn.Linear | None:
        return _linear(self.model)

    @property
    def per_token(self) -> bool:
        return hasattr(self.model, "lm_head")

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        model: Any = self.model
        return model.pool(hidden, inputs.get("attention_mask")) if hasattr(model, "pool") else hidden

    def head(self, features: Tensor) -> Tensor:
        model: Any = self.model
        if model is self.core:
            return features
        return model.lm_head(features) if hasattr(model, "lm_head") else model.classifier(features)

    def mask(self, inputs: Inputs, hidden: Tensor) -> Any:
        from transformers.masking_utils import create_causal_mask

        positions = _positions(hidden)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=inputs.get("attention_mask"),
            past_key_values=None,
            position_ids=positions,
        )


class _GPT2(_Decoder):
    blocks_path = "h"
    norm_name = "ln_f"

    def embed(self, inputs: Inputs) -> Tensor:
        return self.placed(self.core.wte(inputs["input_ids"]))

    @property
    def vocabulary(self) -> Tensor:
        words: Tensor = self.core.wte.weight
        return words

    def placed(self, vectors: Tensor) -> Tensor:
        return self.core.drop(vectors + self.core.wpe(_positions(vectors)))

    def through(self, layer: nn.Module, hidden: Tensor, mask: Any) -> Tensor:
        return _tensor(layer(hidden, None, mask, use_cache=False))


class _Llama(_Decoder):
    blocks_path = "layers"
    norm_name = "norm"

    def embed(self, inputs: Inputs) -> Tensor:
        return self.core.embed_tokens(inputs["input_ids"])

    @property
    def vocabulary(self) -> Tensor:
        words: Tensor = self.core.embed_tokens.weight
        return words

    def placed(self, vectors: Tensor) -> Tensor:
        return vectors

    def mask(self, inputs: Inputs, hidden: Tensor) -> Any:
        positions = _positions(hidden)
        return {
            "attention_mask": super().mask(inputs, hidden),
            "position_embeddings": self.core.rotary_emb(hidden, position_ids=positions),
            "position_ids": positions,
        }

    def through(self, layer: nn.Module, hidden: Tensor, mask: Any) -> Tensor:
        return _tensor(layer(hidden, use_cache=False, **mask))


_HEADS = ("cls", "lm_head", "pre_classifier", "classifier", "vocab_transform", "vocab_layer_norm", "vocab_projector")
#: Backbone class and how it is put together.
_FAMILIES: dict[str, type[Anatomy]] = {
    "ViTModel": _ViT,
    "BertModel": _Bert,
    "RobertaModel": _Bert,
    "XLMRobertaModel": _Bert,
    "DistilBertModel": _DistilBert,
    "MPNetModel": _MPNet,
    "GPT2Model": _GPT2,
    "LlamaModel": _Llama,
}
#: What may hold a backbone.
_HOLDERS = (
    "PooledClassifier",
    "ForImageClassification",
    "ForSequenceClassification",
    "ForMaskedLM",
    "ForCausalLM",
    "LMHeadModel",
)


def anatomy(model: nn.Module) -> Anatomy:
    """The anatomy of a model, bare, with its head, or with adapters injected.

    Raises MissingError for an architecture that isn't known.
    """
    kind = type(model).__name__
    if kind == "MultiExit":  # its names are its base's
        return anatomy(model.base)  # type: ignore[arg-type]
    if kind in ("Prompted", "Rewritten"):
        return model.parts  # type: ignore[return-value]
    if kind in _FAMILIES:
        return _FAMILIES[kind](model, model, "")
    decoder_classifier = kind in ("GPT2ForSequenceClassification", "LlamaForSequenceClassification")
    if kind.endswith(_HOLDERS) and not decoder_classifier:
        for name, child in model.named_children():
            if type(child).__name__ in _FAMILIES:
                return _FAMILIES[type(child).__name__](model, child, f"{name}.")
    known = ", ".join(sorted(family.removesuffix("Model") for family in _FAMILIES))
    raise MissingError(
        f"the parts of a {kind} are not known to fedge",
        hint=f"methods that cut or extend blocks work with {known}, bare, with a stock head, or pooled",
    )


def is_known(model: nn.Module) -> bool:
    """Whether ``anatomy`` can tell the model's parts."""
    try:
        anatomy(model)
    except MissingError:
        return False
    return True


def truncate(model: nn.Module, depth: int) -> nn.Module:
    """A copy of the model, sharing its memory, that has only the first ``depth`` blocks (1 to all of them)."""
    parts = anatomy(share(model))
    if not 1 <= depth <= parts.depth:
        raise ValueError(f"a model of {parts.depth} blocks can't be cut to {depth}")
    del parts.layers[depth:]  # type: ignore[attr-defined]
    for config in {
        id(found): found for found in (parts.config, getattr(parts.model, "config", None)) if found
    }.values():
        config.num_hidden_layers = depth
    return parts.model


def _linear(model: nn.Module) -> nn.Linear | None:
    """A model's classifier, where that is one linear layer."""
    found = getattr(model, "classifier", None)
    return found if isinstance(found, nn.Linear) else None


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _before(prompt: Tensor, hidden: Tensor) -> Tensor:
    return torch.cat([prompt.expand(hidden.shape[0], -1, -1), hidden], 1)


def _positions(hidden: Tensor) -> Tensor:
    return torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
