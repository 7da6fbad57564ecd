"""Figures to hold an accuracy against: guessing, linear models on the raw data, counts of words, frozen features."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedge.core.task import IGNORE
from fedge.data.encode import Data
from fedge.data.partition import sample
from fedge.data.raw import Raw, Split
from fedge.data.rows import Rows
from fedge.errors import ConfigError

#: ``{'name', 'accuracy', 'detail'}``, with ``loss`` (nats) and ``perplexity`` too for language modelling.
Baseline = dict[str, Any]

#: Training rows that a baseline takes at most, so that it stays a matter of seconds.
MOST_ROWS = 20_000
_MOST_NUMBERS = 16_000_000
_MOST_PIXELS = 3 * 32 * 32
_STEPS = 100
_STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)


def baselines(raw: Raw, data: Data, seed: int) -> list[Baseline]:
    """All that go with the task without a model: majority and linear, or unigram and bigram."""
    if data.task.generative:
        return language_baselines(data)
    return [majority_baseline(raw), linear_baseline(raw, seed)]


def majority_baseline(raw: Raw) -> Baseline:
    """Always the training split's commonest class."""
    train, test = _labels(raw)
    commonest = int(np.bincount(train).argmax())
    return {
        "name": "majority",
        "accuracy": float((test == commonest).mean()),
        "detail": f"always '{raw.names[commonest]}'",
    }


def linear_baseline(raw: Raw, seed: int) -> Baseline:
    """Logistic regression on raw pixels, or on TF-IDF of words and pairs of words, fitted on all training rows.

    More than ``MOST_ROWS`` training rows (fewer for wide images) are drawn down to that, images larger than 32×32 in
    colour are averaged down; the ``detail`` says so. Deterministic.
    """
    train, test = _labels(raw)
    most = MOST_ROWS if raw.train.image is None else min(MOST_ROWS, _MOST_NUMBERS // _width(raw.train.image.shape))
    kept = sample(train, len(train), most, seed, "linear baseline")
    if raw.train.text is not None:
        features, tested, what = _words(raw, kept)
    else:
        features, tested, what = _pixels(raw, kept)
    accuracy, reached = _logistic(features, train[kept], tested, test, strength=10.0 if raw.train.text else 1.0)
    detail = f"logistic regression on {what}, {_of(len(kept), len(train))} rows{reached}"
    return {"name": "linear", "accuracy": accuracy, "detail": detail}


def features_baseline(
    features_train: Tensor | np.ndarray,
    labels_train: Tensor | np.ndarray,
    features_test: Tensor | np.ndarray,
    labels_test: Tensor | np.ndarray,
) -> Baseline:
    """Logistic regression on a frozen encoder's features ``[n, width]``; labels ``[n]``.

    Features are standardised, those that hardly vary left out; the strength of the pull towards zero is the best of
    ``_STRENGTHS`` on a fifth of the training rows. Deterministic.
    """
    train, test = (np.asarray(features, dtype=np.float64) for features in (features_train, features_test))
    labels, expected = np.asarray(labels_train), np.asarray(labels_test)
    centre, spread = train.mean(0), train.std(0)
    varied = spread > 1e-6 * spread.max(initial=0.0)
    train, test = ((features - centre)[:, varied] / spread[varied] for features in (train, test))
    strength = _best_strength(train, labels)
    accuracy, reached = _logistic(train, labels, test, expected, strength)
    detail = f"logistic regression on {train.shape[1]} frozen features, {len(train)} rows, C = {strength:g}{reached}"
    return {"name": "features", "accuracy": accuracy, "detail": detail}


def _best_strength(features: np.ndarray, labels: np.ndarray) -> float:
    apart = np.zeros(len(labels), dtype=bool)
    apart[sample(labels, len(labels), len(labels) // 5, "features baseline")] = True
    if not apart.any() or not features.shape[1]:
        return _STRENGTHS[0]
    scores = [
        _logistic(features[~apart], labels[~apart], features[apart], labels[apart], strength)[0]
        for strength in _STRENGTHS
    ]
    return _STRENGTHS[int(np.argmax(scores))]


def encoder_features(
    rows: Rows, forward: Callable[[Mapping[str, Tensor]], Tensor], batch: int, cap: int = MOST_ROWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 ``[n, width]`` and labels int64 ``[n]`` of at most ``cap`` rows.

    forward: a batch (with its labels) -> ``[rows, width]``; runs without gradients.
    """
    labels = rows.labels
    if labels is None:
        raise ConfigError("features need rows with labels")
    if len(rows) > cap:
        rows = rows.take(sample(labels.numpy(), len(rows), cap, seed, "features"))
    with torch.inference_mode():
        found = [forward(piece).float().flatten(1).cpu().numpy() for piece in rows.chunks(batch)]
    kept = rows.labels
    assert kept is not None
    return np.concatenate(found), kept.numpy()


def _labels(raw: Raw) -> tuple[np.ndarray, np.ndarray]:
    if raw.train.label is None or raw.test.label is None:
        raise ConfigError(f"{raw.name} has no labels to predict")
    return raw.train.label, raw.test.label


def _of(kept: int, whole: int) -> str:
    return str(whole) if kept == whole else f"{kept} of {whole}"


def _logistic(train: Any, labels: np.ndarray, test: Any, expected: np.ndarray, strength: float) -> tuple[float, str]:
    """Accuracy on the test rows, and what a reader must know of the fit; sparse features: one against the rest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(np.unique(labels)) < 2 or not train.shape[1]:
        return float((expected == np.bincount(labels).argmax()).mean()), "; nothing to tell classes apart by"
    if hasattr(train, "tocsr"):
        model = OneVsRestClassifier(LogisticRegression(C=strength, solver="liblinear", tol=1e-2, random_state=0))
    else:
        model = LogisticRegression(C=strength, max_iter=_STEPS, tol=1e-3)
    # several threads on a busy machine wait for one another a hundred times longer than they compute
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train, labels)
        accuracy = float((model.predict(test) == expected).mean())
    stopped = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return accuracy, f"; stopped after {_STEPS} steps" if stopped else ""


def _words(raw: Raw, kept: np.ndarray) -> tuple[Any, Any, str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = raw.train.text or []
    # any run of characters between spaces and punctuation: the default leaves out words of one letter, and with them
    # most of a language written without spaces
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=200_000, token_pattern=r"\w+")
    try:
        train = counts.fit_transform([texts[row] for row in kept])
    except ValueError:
        raise ConfigError(f"{raw.name}: the texts hold no words") from None
    return train, counts.transform(raw.test.text or []), "TF-IDF of words and word pairs"


def _pixels(raw: Raw, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    assert raw.train.image is not None
    factor = _factor(raw.train.image.shape)
    train, test = (_flat(split, factor) for split in (raw.train.take(kept), raw.test))
    return train, test, "raw pixels" if factor == 1 else f"pixels averaged {factor}×{factor}"


def _factor(shape: tuple[int, ...]) -> int:
    return max(1, math.ceil(math.sqrt(math.prod(shape[1:]) / _MOST_PIXELS)))


def _width(shape: tuple[int, ...]) -> int:
    """Numbers in an image after averaging, at most."""
    factor = _factor(shape)
    return shape[1] * math.ceil(shape[2] / factor) * math.ceil(shape[3] / factor)


def _flat(split: Split, factor: int) -> np.ndarray:
    assert split.image is not None
    images = torch.from_numpy(split.image)
    whole = images.float() / 255 if images.dtype == torch.uint8 else images
    if factor > 1:
        whole = torch.nn.functional.avg_pool2d(whole, factor, ceil_mode=True)
    return whole.flatten(1).numpy()


# language modelling -----------------------------------------------------------------------------------------------


def language_baselines(data: Data) -> list[Baseline]:
    """Counts of tokens, and for causal-lm of token pairs, judged on the positions that the model is judged on.

    unigram: add-one smoothed frequencies. bigram: frequencies after the preceding token, mixed with the unigram by
    Witten and Bell's weights, which trust a token's followers the more the oftener they repeat.
    """
    tokens = _tokens(data.train)
    size = max(data.task.classes, int(tokens.max()) + 1)
    counts = np.bincount(tokens[tokens >= 0], minlength=size).astype(np.float64)
    chance = (counts + 1) / (counts.sum() + size)
    if data.task.kind == "masked-lm":
        found = [chunk["labels"].numpy().ravel() for chunk in data.test.chunks(1024)]
        targets = np.concatenate(found)
        return [_figures("unigram", chance, targets[targets != IGNORE])]
    test = _stored(data.test)
    return [_figures("unigram", chance, test[:, 1:].ravel()), _bigram(_stored(data.train), test, chance)]


def _stored(rows: Rows) -> np.ndarray:
    return rows.gather().columns["input_ids"].numpy().astype(np.int64)


def _tokens(rows: Rows) -> np.ndarray:
    """The tokens that count, flat: all, or for padded rows those that are no special tokens."""
    tokens = _stored(rows)
    if rows.masking is not None:
        return tokens[~np.isin(tokens, rows.masking.special)]
    return tokens.ravel()


def _figures(name: str, chance: np.ndarray, targets: np.ndarray) -> Baseline:
    loss = float(-np.log(chance[targets]).mean())
    accuracy = float((targets == chance.argmax()).mean())
    return _language(name, accuracy, loss, f"add-one token frequencies, {len(targets)} positions")


def _language(name: str, accuracy: float, loss: float, detail: str) -> Baseline:
    return {"name": name, "accuracy": accuracy, "loss": loss, "perplexity": math.exp(min(loss, 80.0)), "detail": detail}


def _bigram(train: np.ndarray, test: np.ndarray, chance: np.ndarray) -> Baseline:
    size = len(chance)
    pairs, counts = np.unique(train[:, :-1].ravel() * size + train[:, 1:].ravel(), return_counts=True)
    before = pairs // size
    seen = np.bincount(before, weights=counts, minlength=size)
    followers = np.bincount(before, minlength=size)
    trust = seen / np.maximum(seen + followers, 1)

    last, targets = test[:, :-1].ravel(), test[:, 1:].ravel()
    wanted = last * size + targets
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    own = np.where(pairs[at] == wanted, counts[at], 0) / np.maximum(seen[last], 1)
    mixed = trust[last] * own + (1 - trust[last]) * chance[targets]

    likeliest = np.full(size, int(chance.argmax()))
    order = np.argsort(counts, kind="stable")
    likeliest[before[order]] = (pairs % size)[order]
    accuracy = float((likeliest[last] == targets).mean())
    loss = float(-np.log(mixed).mean())
    return _language("bigram", accuracy, loss, f"Witten-Bell token pairs, {len(targets)} positions")
