"""The data that travels with the package, and where other data comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedge.data.tables import Table


@dataclass(frozen=True)
class Entry:
    """A line of ``fedge datasets``. name: what to write after ``dataset:``; form: bundled, file, folder or hub."""

    name: str
    form: str
    task: str
    summary: str


ENTRIES = (
    Entry(
        "digits",
        "bundled",
        "image-classification",
        "1,797 scanned handwritten digits, 8×8 grey, 10 classes (UCI, through scikit-learn)",
    ),
    Entry("FILE.csv", "file", "text or image classification", "a header, then rows; also .tsv"),
    Entry("FILE.jsonl", "file", "text classification or causal-lm", "an object a line; instruction/output are joined"),
    Entry("FILE.parquet", "file", "any", "needs fedge[parquet]"),
    Entry("FILE.npz", "file", "image-classification", "x_train, y_train, x_test, y_test; or x, y and is_test"),
    Entry("FILE.txt", "file", "causal-lm or masked-lm", "paragraphs divided by empty lines"),
    Entry("FOLDER", "folder", "any", "train.csv and test.csv (or .tsv, .jsonl, .parquet, .txt)"),
    Entry("FOLDER", "folder", "image-classification", "a subfolder a class, or train/ and test/; needs fedge[images]"),
    Entry("fancyzhx/ag_news", "hub", "text-classification", "a Hugging Face Hub id; needs fedge[hub]"),
    Entry("zalando-datasets/fashion_mnist", "hub", "image-classification", "needs fedge[hub] and fedge[images]"),
    Entry("openai/gsm8k:main", "hub", "causal-lm", "a Hub id with its configuration"),
)

BUNDLED = tuple(entry.name for entry in ENTRIES if entry.form == "bundled")


def digits() -> Table:
    """The 1,797 digits, scaled to [0, 1]: image float32 ``[1797, 1, 8, 8]``, label 0..9."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images / 16.0).astype(np.float32)[:, None]
    return Table("digits", {"image": images, "label": found.target.astype(np.int64)})
