"""Bundled tiny models: real architectures at toy sizes, initialised from the seed, with nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fedge.errors import ConfigError, nearest

#: Names, the tasks that each can take (first: the one meant when none is said), and what options may change.
TASKS = {
    "vit-nano": ("image-classification",),
    "bert-nano": ("text-classification", "masked-lm"),
    "gpt-nano": ("causal-lm",),
}
_SIZES: dict[str, dict[str, int | float]] = {
    "vit-nano": {
        "image_size": 8,
        "channels": 1,
        "patch": 2,
        "hidden": 64,
        "layers": 4,
        "heads": 4,
        "mlp": 128,
        "dropout": 0.0,
    },
    "bert-nano": {"length": 256, "hidden": 64, "layers": 4, "heads": 4, "mlp": 128, "dropout": 0.0},
    "gpt-nano": {"length": 256, "hidden": 64, "layers": 4, "heads": 4, "mlp": 256, "dropout": 0.0},
}


@dataclass(frozen=True)
class Nano:
    """A freshly initialised model and the tokenizer that belongs to it (None for images)."""

    model: nn.Module
    tokenizer: Any


def build(name: str, task: str, classes: int, labels: list[str] | None, options: dict[str, Any]) -> Nano:
    """A bundled model for a task, drawn from torch's global state.

    ``options`` overrides sizes: image_size, channels, patch (pixels), length (tokens), hidden, layers, heads, mlp,
    dropout. Raises ConfigError for one that the model doesn't have.
    """
    sizes = dict(_SIZES[name])
    for key, value in options.items():
        if key not in sizes:
            raise ConfigError(
                f"model {name} has no option '{key}'; {nearest(key, sizes) or 'it has ' + ', '.join(sizes)}"
            )
        sizes[key] = value
    named: dict[str, Any] = {"num_labels": classes}
    if labels:
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}
    if name == "vit-nano":
        return Nano(_vit(sizes, named), None)
    tokenizer = bert_tokenizer(int(sizes["length"])) if name == "bert-nano" else gpt_tokenizer(int(sizes["length"]))
    if name == "bert-nano":
        return Nano(_bert(sizes, named, task, tokenizer), tokenizer)
    return Nano(_gpt(sizes, tokenizer), tokenizer)


def _spread(sizes: dict[str, Any]) -> float:
    """Standard deviation of the initial weights: the usual 0.02 suits a width near 2500 and learns slowly at 64."""
    return float(sizes["hidden"] ** -0.5)


def _vit(sizes: dict[str, Any], named: dict[str, Any]) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=sizes["image_size"],
        num_channels=sizes["channels"],
        patch_size=sizes["patch"],
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["mlp"],
        hidden_dropout_prob=sizes["dropout"],
        attention_probs_dropout_prob=sizes["dropout"],
        initializer_range=_spread(sizes),
        **named,
    )
    return ViTForImageClassification(config)


def _bert(sizes: dict[str, Any], named: dict[str, Any], task: str, tokenizer: Any) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=sizes["length"],
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["mlp"],
        hidden_dropout_prob=sizes["dropout"],
        attention_probs_dropout_prob=sizes["dropout"],
        initializer_range=_spread(sizes),
        pad_token_id=tokenizer.pad_token_id,
        **({} if task == "masked-lm" else named),
    )
    return BertForMaskedLM(config) if task == "masked-lm" else BertForSequenceClassification(config)


def _gpt(sizes: dict[str, Any], tokenizer: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=sizes["length"],
        n_embd=sizes["hidden"],
        n_layer=sizes["layers"],
        n_head=sizes["heads"],
        n_inner=sizes["mlp"],
        resid_pdrop=sizes["dropout"],
        embd_pdrop=sizes["dropout"],
        attn_pdrop=sizes["dropout"],
        initializer_range=_spread(sizes),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def bert_tokenizer(length: int = 256) -> Any:
    """One token a byte, framed by [CLS] and [SEP]."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = _bytes(specials)
    tokens.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, specials.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def gpt_tokenizer(length: int = 256) -> Any:
    """One token a byte; the end of a text is a token of its own, and padding another."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_bytes(["<|pad|>", "<|endoftext|>"]),
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
    )


def _bytes(specials: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # ByteLevel spells each of the 256 bytes as one printable character; without merges each stays one token
    spelled = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *spelled])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer
