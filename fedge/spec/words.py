"""What a wrong key most likely stands for: a slip of the pen, or what another tool calls it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fedge.errors import closest

# what compose, Kubernetes, the Hugging Face tools and federated frameworks say, and the keys that it may mean here
_ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("services", "clients", "nodes", "workers", "hosts", "fleet"), ("devices", "cohort")),
    **dict.fromkeys(("replicas", "scale", "instances", "number", "num", "quantity", "n"), ("count",)),
    **dict.fromkeys(("mem", "ram", "mem_limit", "memory_limit", "memory_budget"), ("memory",)),
    **dict.fromkeys(("cpu", "cpus", "flops"), ("compute",)),
    **dict.fromkeys(("bandwidth", "link", "networks", "connection"), ("network",)),
    **dict.fromkeys(("download", "downlink", "downstream"), ("down",)),
    **dict.fromkeys(("upload", "uplink", "upstream"), ("up",)),
    **dict.fromkeys(("delay", "ping", "rtt"), ("latency",)),
    **dict.fromkeys(("packet_loss", "drop"), ("loss",)),
    **dict.fromkeys(("type", "kind", "platform", "hardware", "image", "board"), ("profile",)),
    **dict.fromkeys(("model_name_or_path", "model_name", "pretrained", "checkpoint", "path"), ("name", "dataset")),
    **dict.fromkeys(("dataset_name", "datasets", "file", "files"), ("dataset", "data")),
    **dict.fromkeys(("kwargs", "config", "args"), ("options",)),
    **dict.fromkeys(("max_length", "max_seq_length", "seq_len"), ("length",)),
    **dict.fromkeys(("split", "test_size", "test_split", "validation"), ("test",)),
    **dict.fromkeys(("max_train_samples", "samples", "limit"), ("rows",)),
    **dict.fromkeys(("text_column", "sentence"), ("text",)),
    **dict.fromkeys(("label_column", "target", "labels"), ("label",)),
    **dict.fromkeys(("distribution", "non_iid", "alpha_dirichlet"), ("partition",)),
    **dict.fromkeys(("learning_rate", "client_lr", "local_lr"), ("lr",)),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size", "minibatch"), ("batch",)),
    **dict.fromkeys(("epochs", "local_epochs", "num_train_epochs", "local_steps", "max_steps"), ("steps",)),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), ("rank",)),
    **dict.fromkeys(("lora_alpha",), ("alpha",)),
    **dict.fromkeys(("target_modules", "modules"), ("targets",)),
    **dict.fromkeys(("num_rounds", "num_server_rounds", "communication_rounds"), ("rounds",)),
    **dict.fromkeys(("fraction_fit", "clients_per_round", "participants", "sample"), ("cohort",)),
    **dict.fromkeys(("min_clients", "min_fit_clients", "min_available_clients"), ("quorum",)),
    **dict.fromkeys(("timeout", "round_timeout"), ("deadline",)),
    **dict.fromkeys(("strategy", "algorithm", "aggregation"), ("method",)),
    **dict.fromkeys(("server_optimizer", "server_opt"), ("server",)),
    **dict.fromkeys(("random_seed", "random_state"), ("seed",)),
    **dict.fromkeys(("steps", "phases", "jobs", "tasks"), ("stages",)),
    **dict.fromkeys(("pretrain", "pre_train", "training"), ("train",)),
    **dict.fromkeys(("finetune", "fine_tune", "tune", "adapt", "personalize", "peft"), ("customize",)),
    **dict.fromkeys(("export", "serve", "infer", "inference", "release"), ("deploy",)),
}


@dataclass(frozen=True)
class Guess:
    """``key``: the known key that is meant, None when nobody can tell; ``hint``: how to say so."""

    key: str | None
    hint: str | None


def guess(word: str, known: Iterable[str], value: object = "") -> Guess:
    """What the unknown key ``word`` (with its ``value``) stands for among the ``known``."""
    names = list(known)
    head, colon, rest = word.partition(":")
    if colon and head.strip() in names:
        return Guess(head, f"a space is missing after the ':'; `{head}: {rest or '…'}`")
    if "\u00a0" in word:
        return Guess(None, "it holds a no-break space (U+00A0); type a plain one in its place")
    if value is None and re.match(r"\d", word):
        return Guess(None, "in braces a comma divides keys; the decimal sign is a point")
    plain = re.sub(r"[-_ ]+", "_", word.strip()).lower()
    for name in names:
        if name.lower() == plain:
            return Guess(name, f"did you mean '{name}'?")
    for name in _ELSEWHERE.get(plain, ()):
        if name in names:
            return Guess(name, f"here it is called '{name}'")
    near = closest(word, names)
    return Guess(near, f"did you mean '{near}'?" if near else None)


def number_meant(given: object, *, whole: bool = False) -> str:
    """'; 3?' for a text or a float that holds the whole number 3, '; 0.9?' for '90%'; nothing where none is near."""
    if isinstance(given, float) and given.is_integer() and abs(given) < 1e15:
        return f"; {int(given)}?"
    if isinstance(given, str):
        text = given.strip()
        if re.fullmatch(r"[+-]?\d{1,15}", text):
            return f"; {int(text)}?"
        if not whole and re.fullmatch(r"[+-]?\d{1,15}(\.\d{1,15})?([eE][+-]?\d{1,2})?", text):
            return f"; {text}, without quotes?"
        if not whole and re.fullmatch(r"\d{1,15}(\.\d{1,15})?\s*%", text):
            return f"; {float(text.rstrip('% ')) / 100:g}?"
    return ""
