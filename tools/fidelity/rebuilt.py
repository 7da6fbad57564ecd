"""Published models rebuilt from their configuration alone: no weights are needed to count what a step of them costs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class UnknownModelError(Exception):
    """Nobody here knows how the model of that name is built."""


@dataclass(frozen=True)
class Rebuilt:
    """A model without weights, the inputs that it takes for a batch, the modules that LoRA adapts, and its blocks."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]
    targets: tuple[str, ...] = ()
    blocks: str = ""


#: Names in publications and in timm.
_TIMM = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vittiny": "vit_tiny_patch16_224",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "mlpmixer_b16": "mixer_b16_224",
    "mlpmixer_s16": "mixer_s16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenetv3small": "mobilenetv3_small_100",
    "mobilenetv3large": "mobilenetv3_large_100",
    "mobilevits": "mobilevit_s",
    "mobilevit-s": "mobilevit_s",
    "mobilevitxs": "mobilevit_xs",
    "mobilevitxxs": "mobilevit_xxs",
    "efficientnetv2s": "efficientnetv2_s",
    "resnet50v2": "resnetv2_50",
    "resnet101v2": "resnetv2_101",
    "resnext50": "resnext50_32x4d",
    "densenet-121": "densenet121",
    "inceptionv3": "inception_v3",
    "inceptionv4": "inception_v4",
}
#: Sizes of images where they are not given, by timm's name.
_PIXELS = {
    "efficientnet_lite0": 224,
    "efficientnet_lite1": 240,
    "efficientnet_lite2": 260,
    "efficientnet_lite3": 280,
    "efficientnet_lite4": 300,
    "efficientnetv2_s": 384,
    "inception_v3": 299,
    "inception_v4": 299,
    "mobilevit_xxs": 256,
    "mobilevit_xs": 256,
    "mobilevit_s": 256,
}


def timm_name(name: str) -> str:
    """What timm calls a model of that published name; it need not know it."""
    plain = name.lower().replace(" ", "")
    for form in (plain, plain.replace("-", ""), plain.replace("-", "_"), re.sub(r"[-_]", "", plain)):
        if form in _TIMM:
            return _TIMM[form]
    if found := re.fullmatch(r"efficientvit-(b\d|l\d)", plain):
        return f"efficientvit_{found[1]}"
    if found := re.fullmatch(r"resnet-?(\d+)", plain):
        return f"resnet{found[1]}"
    return plain.replace("-", "_")


def pixels(name: str, size: str) -> int:
    """The side of the images in a row's text, or the model's own where that names a range or nothing."""
    own = _PIXELS.get(timm_name(name))
    found = re.match(r"(\d+)x\d+", size)
    return int(found[1]) if found else own or 224


def image(name: str, size: int) -> Rebuilt:
    """A model of timm's. UnknownModelError where timm is not there, or does not know it."""
    try:
        import timm
    except ImportError as error:
        raise UnknownModelError(f"{name} needs timm, which is not installed") from error
    theirs = timm_name(name)
    if theirs == "googlenet":
        from torchvision.models import googlenet

        return Rebuilt(lambda: googlenet(aux_logits=False, init_weights=False), lambda n: {"x": _picture(n, size)})
    if theirs not in timm.list_models():
        raise UnknownModelError(f"timm has no {theirs}")
    return Rebuilt(lambda: timm.create_model(theirs), lambda n: {"x": _picture(n, size)})


def _picture(batch: int, size: int) -> Tensor:
    return torch.empty(batch, 3, size, size)


#: hidden, intermediate, layers, heads, key-value heads, width of a head, vocabulary.
_GEMMA3 = {
    "270M": (640, 2048, 18, 4, 1, 256, 262144),
    "1B": (1152, 6912, 26, 4, 1, 256, 262144),
    "4B": (2560, 10240, 34, 8, 4, 256, 262208),
}
_QWEN3 = {
    "0.6B": (1024, 3072, 28, 16, 8, 128, 151936),
    "1.7B": (2048, 6144, 28, 16, 8, 128, 151936),
    "4B": (2560, 9728, 36, 32, 8, 128, 151936),
    "8B": (4096, 12288, 36, 32, 8, 128, 151936),
}
_QWEN25 = {
    "0.5B": (896, 4864, 24, 14, 2, 64, 151936),
    "1.5B": (1536, 8960, 28, 12, 2, 128, 151936),
    "3B": (2048, 11008, 36, 16, 2, 128, 151936),
}
_LLAMA = {
    "llama-2-7b": (4096, 11008, 32, 32, 32, 128, 32000),
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 64, 32000),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128256),
    "llama-3.2-3b": (3072, 8192, 28, 24, 8, 128, 128256),
}
#: Of the published sizes that are no more than a number: hidden and layers of the usual decoder of about that size.
_DECODERS = {125: (768, 12), 350: (1024, 24), 1000: (2048, 18), 1500: (2048, 28), 2700: (2560, 32), 3800: (3072, 32)}
_DECODERS |= {7000: (4096, 32), 13000: (5120, 40)}


def text(name: str, length: int, params: float = 0.0) -> Rebuilt:
    """A language model for sequences of ``length`` tokens; ``params`` in millions, where the name says no more."""
    import transformers as hf

    low = name.lower()
    if found := re.match(r"gemma-3-(\d+(?:\.\d+)?[mb])", low):
        return _decoder(hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, _GEMMA3, found[1].upper(), length)
    if found := re.match(r"qwen3-(\d+(?:\.\d+)?b)", low):
        return _decoder(hf.Qwen3Config, hf.Qwen3ForCausalLM, _QWEN3, found[1].upper(), length)
    if found := re.match(r"qwen2(?:\.5)?-(\d+(?:\.\d+)?b)", low):
        return _decoder(hf.Qwen2Config, hf.Qwen2ForCausalLM, _QWEN25, found[1].upper(), length)
    if low in _LLAMA:
        return _decoder(hf.LlamaConfig, hf.LlamaForCausalLM, _LLAMA, low, length)
    if low.startswith("bitnet"):
        hidden, layers = _DECODERS[min(_DECODERS, key=lambda size: abs(math.log(size / params)))]
        wide = int(hidden * 8 / 3 / 64) * 64
        sizes = {"": (hidden, wide, layers, hidden // 64, hidden // 64, 64, 32000)}
        return _decoder(hf.LlamaConfig, hf.LlamaForCausalLM, sizes, "", length)
    if "gpt2" in low or "gpt-2" in low:
        layers = 6 if "distil" in low else 12
        gpt = hf.GPT2Config(n_layer=layers)
        return Rebuilt(lambda: hf.GPT2LMHeadModel(gpt), lambda n: _tokens(n, length), ("c_attn",), "transformer.h.")
    if low.startswith(("opt-",)):
        raise UnknownModelError(name)
    return _encoder(low, length)


_BERTS: Mapping[str, Mapping[str, int]] = {
    "bert-base": {},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "bert-tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "bert-mini": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    "bert-small": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
    "bert-medium": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048},
    "all-minilm-l6-v2": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}


def _encoder(low: str, length: int) -> Rebuilt:
    import transformers as hf

    def inputs(n: int) -> dict[str, Tensor]:
        return _tokens(n, length)

    if low in _BERTS or low.replace("_", "-") in _BERTS:
        bert = hf.BertConfig(**_BERTS[low.replace("_", "-")])
        return Rebuilt(
            lambda: hf.BertForSequenceClassification(bert), inputs, ("query", "value"), "bert.encoder.layer."
        )
    if low.startswith("roberta"):
        sizes = _BERTS["bert-large"] if "large" in low else {}
        robert = hf.RobertaConfig(vocab_size=50265, max_position_embeddings=514, **sizes)
        kind = hf.RobertaForSequenceClassification
        return Rebuilt(lambda: kind(robert), inputs, ("query", "value"), "roberta.encoder.layer.")
    if low.startswith("distilbert"):
        small = hf.DistilBertConfig()
        kind = hf.DistilBertForSequenceClassification
        return Rebuilt(lambda: kind(small), inputs, ("q_lin", "v_lin"), "distilbert.transformer.layer.")
    if low.startswith("mobilebert"):
        return Rebuilt(lambda: hf.MobileBertForQuestionAnswering(hf.MobileBertConfig()), inputs)
    if low.startswith("clip") and "text" in low:
        return Rebuilt(lambda: hf.CLIPTextModel(hf.CLIPTextConfig()), lambda n: _tokens(n, min(length, 77)))
    if low.startswith("clip"):
        clip = hf.CLIPVisionConfig(patch_size=32)
        return Rebuilt(lambda: hf.CLIPVisionModel(clip), lambda n: {"pixel_values": _picture(n, 224)})
    if low.startswith("whisper-tiny enc"):
        tiny = hf.WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
        return Rebuilt(
            lambda: hf.WhisperModel(tiny).get_encoder(), lambda n: {"input_features": torch.empty(n, 80, 3000)}
        )
    raise UnknownModelError(low)


def _decoder(config: Any, kind: Any, sizes: Mapping[str, tuple[int, ...]], size: str, length: int) -> Rebuilt:
    if size not in sizes:
        raise UnknownModelError(f"a {kind.__name__} of {size}")
    hidden, wide, layers, heads, groups, width, words = sizes[size]
    made = config(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width,
        vocab_size=words,
    )
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return Rebuilt(lambda: kind(made), lambda n: _tokens(n, length), linear, "model.layers.")


def _tokens(batch: int, length: int) -> dict[str, Tensor]:
    return {"input_ids": torch.zeros(batch, length, dtype=torch.long)}


class _Layer(nn.Module):
    """A single layer of a language model, as one study measured them."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out[0] if isinstance(out, tuple) else out


def single(name: str, steps: int) -> Rebuilt:
    """'lstm layer 500x500', 'output layer 500x5000', 'embedding layer 5000x500' on sequences of ``steps``."""
    found = re.fullmatch(r"(lstm|output|embedding) layer (\d+)x(\d+)", name)
    if not found:
        raise UnknownModelError(name)
    kind, rows, columns = found[1], int(found[2]), int(found[3])
    if kind == "lstm":
        return Rebuilt(
            lambda: _Layer(nn.LSTM(rows, columns, batch_first=True)), lambda n: {"x": torch.empty(n, steps, rows)}
        )
    if kind == "output":
        return Rebuilt(lambda: _Layer(nn.Linear(rows, columns)), lambda n: {"x": torch.empty(n, steps, rows)})
    return Rebuilt(
        lambda: _Layer(nn.Embedding(rows, columns)), lambda n: {"x": torch.zeros(n, steps, dtype=torch.long)}
    )
