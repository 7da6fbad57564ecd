from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fedge.data.source import read
from fedge.errors import ConfigError, MissingError
from tests.shared_data import shared_data


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path.name


def rows_of(n: int = 10, header: str = "text,label") -> str:
    return header + "\n" + "".join(f"words {row},{'ab'[row % 2]}\n" for row in range(n))


def test_digits():
    raw = read("digits", folder=Path("/"), seed=0)
    assert len(raw.train) + len(raw.test) == 1797
    assert raw.train.image is not None
    assert raw.train.image.shape[1:] == (1, 8, 8)
    assert raw.train.image.min() == 0
    assert raw.train.image.max() == 1
    assert raw.kind == "image-classification"
    assert raw.names == tuple("0123456789")
    assert len(raw.test) == 359
    assert np.bincount(raw.test.label).min() >= 35


def test_the_test_split_and_the_cap_are_seeded(tmp_path):
    name = write(tmp_path / "a.csv", rows_of(100))
    one, again, other = (read(name, folder=tmp_path, rows=20, seed=seed) for seed in (0, 0, 1))
    assert one.describe() == again.describe()
    assert one.sha256 != other.sha256
    assert (len(one.train), len(one.test)) == (20, 20)
    assert np.bincount(one.train.label).tolist() == [10, 10]
    assert not set(one.train.text) & set(one.test.text)
    assert "20 of 80 training rows were drawn" in one.notes
    assert len(read(name, folder=tmp_path, test=0.5, seed=0).test) == 50


def test_describe_is_json_and_the_hash_follows_the_content(tmp_path):
    one = read(write(tmp_path / "a.csv", rows_of()), folder=tmp_path, seed=0)
    same = read(write(tmp_path / "b.csv", rows_of()), folder=tmp_path, seed=0)
    other = read(write(tmp_path / "c.csv", rows_of().replace("words 3", "words x")), folder=tmp_path, seed=0)
    assert json.loads(json.dumps(one.describe()))["classes"] == 2
    assert one.sha256 == same.sha256 != other.sha256


def test_columns_are_found_or_told(tmp_path):
    name = write(tmp_path / "a.csv", "id,Sentence,Category,hospital\n1,one,x,A\n2,two,y,B\n3,three,x,A\n4,four,y,B\n")
    raw = read(name, folder=tmp_path, client="hospital", test=0.5, seed=0)
    assert raw.kind == "text-classification"
    assert raw.names == ("x", "y")
    assert set(raw.train.client) == {"A", "B"}
    told = read(name, folder=tmp_path, text="id+Sentence", label="hospital", test=0.5, seed=0)
    assert told.names == ("A", "B")
    assert all("\n" in text for text in told.train.text)


def test_numbers_as_labels_are_ordered_as_numbers_and_named_beside(tmp_path):
    lines = "".join(f"w{row},{label},n{label}\n" for row, label in enumerate([10, 9, 1, 10, 9, 1]))
    name = write(tmp_path / "a.csv", "text,label,label_name\n" + lines)
    raw = read(name, folder=tmp_path, test=0.5, seed=0)
    assert raw.names == ("n1", "n9", "n10")
    write(tmp_path / "b.csv", "text,label,label_name\na,0,zero\nb,0,null\nc,1,one\n")
    with pytest.raises(ConfigError, match=r"b.csv:3: label 0 is named 'null' here and 'zero' before"):
        read("b.csv", folder=tmp_path, seed=0)


def test_a_folder_of_train_and_test(tmp_path):
    write(tmp_path / "set/train.jsonl", "\n".join(json.dumps({"text": f"t{n}", "label": n % 3}) for n in range(9)))
    write(tmp_path / "set/test.jsonl", json.dumps({"text": "u", "label": 2}) + "\n\n")
    raw = read("set", folder=tmp_path, seed=0)
    assert raw.test.text == ["u"]
    assert raw.test.label.tolist() == [2]
    assert (len(raw.train), raw.names) == (9, ("0", "1", "2"))


def test_a_test_file_of_its_own(tmp_path):
    write(tmp_path / "a.csv", rows_of())
    write(tmp_path / "b.csv", "text,label\nother,b\n")
    raw = read("a.csv", folder=tmp_path, test="b.csv", seed=0)
    assert (len(raw.train), raw.test.text, raw.test.label.tolist()) == (10, ["other"], [1])


def test_instructions_are_joined_and_clients_kept(tmp_path):
    rows = [{"instruction": f"ask {n}", "input": "", "output": f"answer {n}", "client": f"c{n % 2}"} for n in range(6)]
    name = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    raw = read(name, folder=tmp_path, seed=0)
    assert raw.kind == "causal-lm"
    assert raw.train.text[0].split("\n")[0].startswith("ask")
    assert set(raw.train.client) == {"c0", "c1"}
    write(tmp_path / "b.json", json.dumps([{"question": "q", "answer": "a"}] * 4))
    assert read("b.json", folder=tmp_path, seed=0).train.text == ["q\na"] * 3


def test_plain_text_keeps_its_end_for_the_test(tmp_path):
    name = write(tmp_path / "a.txt", "\n\n".join(f"paragraph {n}\nsecond line" for n in range(10)))
    raw = read(name, folder=tmp_path, seed=3)
    assert raw.kind == "causal-lm"
    assert raw.test.text == ["paragraph 8\nsecond line", "paragraph 9\nsecond line"]


def test_language_modelling_of_labelled_texts_keeps_the_labels(tmp_path):
    name = write(tmp_path / "a.csv", rows_of())
    raw = read(name, folder=tmp_path, task="masked-lm", seed=0)
    assert (raw.kind, raw.names) == ("masked-lm", ("a", "b"))


def test_a_lone_row_of_a_label_stays_with_the_train_split(tmp_path):
    name = write(tmp_path / "a.csv", rows_of(10) + "alone,c\n")
    for seed in range(5):
        assert 2 in read(name, folder=tmp_path, seed=seed).train.label


@pytest.mark.parametrize("order", ["grey", "last", "first"])
def test_npz_images(tmp_path, order):
    shape = {"grey": (6, 5, 4), "last": (6, 5, 4, 3), "first": (6, 3, 5, 4)}[order]
    images = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(6) % 2, x_test=images[:2], y_test=[0, 1])
    raw = read("a.npz", folder=tmp_path, seed=0)
    assert raw.train.image.shape == (6, 1 if order == "grey" else 3, 5, 4)
    assert raw.train.image.dtype == np.uint8
    assert raw.test.label.tolist() == [0, 1]
    if order == "last":
        assert np.array_equal(raw.train.image[0, 1], images[0, :, :, 1])


def test_npz_with_a_mark_and_a_client(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        x=np.ones((6, 2, 2), np.float16),
        label=np.arange(6) % 2,
        speaker=np.arange(6),
        is_test=np.arange(6) > 3,
        names=np.array(["a", "b"]),
    )
    raw = read("a.npz", folder=tmp_path, client="speaker", seed=0)
    assert (len(raw.train), len(raw.test)) == (4, 2)
    assert raw.test.client == ["4", "5"]
    assert raw.train.image.dtype == np.float32


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": [f"t{n}" for n in range(8)], "label": [n % 2 for n in range(8)]})
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read("a.parquet", folder=tmp_path, seed=0).names == ("no", "yes")
    parquet.write_table(table.set_column(1, "label", [[7] * 8]), tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match=r"c.parquet: row 1: the label '7' has no name"):
        read("c.parquet", folder=tmp_path, seed=0)
    write(tmp_path / "b.parquet", "no such thing")
    with pytest.raises(ConfigError, match=r"b.parquet: not a parquet file"):
        read("b.parquet", folder=tmp_path, seed=0)


def test_an_absent_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    write(tmp_path / "a.parquet", b"PAR1")
    write(tmp_path / "pictures/cat/1.png", b"x")
    for name, extra in (("a.parquet", "parquet"), ("pictures", "images"), ("owner/name", "hub")):
        with pytest.raises(MissingError, match=rf"fedge\[{extra}\]"):
            read(name, folder=tmp_path, seed=0)


def picture(path: Path, size: tuple[int, int], colour: object, mode: str = "RGB") -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_image_folders(tmp_path):
    pytest.importorskip("PIL")
    for split, count in (("train", 4), ("test", 1)):
        for at in range(count):
            picture(tmp_path / "set" / split / "cat" / f"{at}.png", (6, 4), (255, 0, 0))
            picture(tmp_path / "set" / split / "dog" / f"{at}.png", (6, 4), 9, "L")
    raw = read("set", folder=tmp_path, seed=0)
    assert (len(raw.train), len(raw.test), raw.names) == (8, 2, ("cat", "dog"))
    assert raw.train.image.shape == (8, 3, 4, 6)
    assert raw.train.image[0, :, 0, 0].tolist() == [255, 0, 0]
    assert raw.test.image[1, :, 0, 0].tolist() == [9, 9, 9]
    flat = read("set/train", folder=tmp_path, seed=0)
    assert len(flat.train) + len(flat.test) == 8


def test_images_of_several_sizes_are_made_square_and_said(tmp_path):
    pytest.importorskip("PIL")
    for at, size in enumerate([(6, 4), (8, 8), (10, 12), (8, 9)]):
        picture(tmp_path / "set" / "ab"[at % 2] / f"{at}.png", size, 5, "L")
    raw = read("set", folder=tmp_path, seed=0, test=0.5)
    assert raw.train.image.shape[1:] == (1, 8, 8)
    assert "images of 4 sizes were brought to 8×8" in raw.notes


def test_a_csv_of_image_files(tmp_path):
    pytest.importorskip("PIL")
    for name in "abcd":
        picture(tmp_path / f"{name}.png", (4, 4), 7, "L")
    write(tmp_path / "a.csv", "image,label\n" + "".join(f"{name}.png,{at % 2}\n" for at, name in enumerate("abcd")))
    assert read("a.csv", folder=tmp_path, seed=0, test=0.5).train.image.shape == (2, 1, 4, 4)
    write(tmp_path / "b.csv", "image,label\na.png,0\nz.png,1\n")
    with pytest.raises(MissingError, match=r"b.csv:3: no image file z.png"):
        read("b.csv", folder=tmp_path, seed=0)
    write(tmp_path / "z.png", "not an image")
    with pytest.raises(ConfigError, match=r"b.csv:3: not an image"):
        read("b.csv", folder=tmp_path, seed=0)


def test_a_hub_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    hidden = datasets.Dataset.from_dict({"text": ["d"], "label": [-1]}, features=features)
    asked = []

    def load(name, configuration):
        asked.append((name, configuration))
        return datasets.DatasetDict({"train": made, "validation": made, "test": hidden})

    monkeypatch.setattr(datasets, "load_dataset", load)
    raw = read("owner/name:main", folder=tmp_path, seed=0)
    assert asked == [("owner/name", "main")]
    assert (raw.names, len(raw.train), len(raw.test)) == (("no", "yes"), 3, 3)

    def fail(name, configuration):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(MissingError, match=r"the Hub does not give it: no network$"):
        read("owner/name", folder=tmp_path, seed=0)


WRONG = {
    "empty.csv": ("", "no rows"),
    "header.csv": ("text,label\n", "no rows"),
    "short.csv": ("text,label\na,1\nb\n", r"short.csv:3: 1 fields where the header has 2"),
    "long.csv": ('text,label\n"two\nlines",1\nb,c,d\n', r"long.csv:4: 3 fields where the header has 2"),
    "quote.csv": ('text,label\na,1\n"b" c,2\n', r"quote.csv:3: not a row of csv"),
    "open.csv": ('text,label\n"a,1\n', r"open.csv:2: not a row of csv"),
    "twice.csv": ("text,text\na,b\n", r"twice.csv:1: the header names 'text' twice"),
    "latin.csv": (b"text,label\na,1\ncaf\xe9,2\n", r"latin.csv:3: not UTF-8 text"),
    "blank.csv": ("text,label\na,1\n  ,2\n", r"blank.csv:3: no text in 'text'"),
    "unlabelled.csv": ("text,label\na,1\nb,\n", r"unlabelled.csv:3: no label in 'label'"),
    "columns.csv": ("words,kind\na,1\n", r"the columns are words, kind"),
    "image.csv": ("image\na.png\n", r"holds the labels: the columns are image"),
    "one.csv": ("text,label\na,1\n", r"1 row: too few"),
    "bad.jsonl": ('{"text": "a"}\n{"text": \n', r"bad.jsonl:2: not a JSON object"),
    "list.jsonl": ("[1]\n", r"list.jsonl:1: not a JSON object"),
    "number.jsonl": ('{"text": 3}\n', r"number.jsonl:1: 'text' holds int, not text"),
    "gone.jsonl": ('{"text": "a", "label": 0}\n{"label": 1}\n', r"gone.jsonl:2: no text in 'text'"),
    "share.jsonl": ('{"text": "a", "label": 0.5}\n', r"share.jsonl:1: 'label' holds 0.5"),
    "object.json": ('{"text": "a"}', r"not a list of JSON objects"),
    "broken.json": ('[{"text": }]', r"broken.json:1: not JSON"),
    "empty.txt": ("\n\n", "no rows"),
    "junk.npz": ("junk", r"junk.npz: not an .npz file"),
    "table.xlsx": ("x", r"cannot be read: .xlsx .one of .csv"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_file_is_said(tmp_path, name):
    content, says = WRONG[name]
    write(tmp_path / name, content)
    with pytest.raises(ConfigError, match=says):
        read(name, folder=tmp_path, seed=0)


def test_what_is_wrong_in_what_was_told_is_said(tmp_path):
    write(tmp_path / "a.csv", rows_of())
    write(tmp_path / "b.csv", "text,label\nx,z\n")
    write(tmp_path / "c.csv", "body,label\nx,a\n")
    write(tmp_path / "folder/notes.txt", "x")
    cases = [
        ({"label": "labl"}, r"no column 'labl' for the label: the columns are text, label; did you mean 'label'"),
        ({"client": "who"}, r"no column 'who' for the client"),
        ({"test": "b.csv"}, r"b.csv:2: the label 'z' is in no row of the train split"),
        ({"test": "c.csv"}, r"c.csv: no column 'text', which .*a.csv has"),
        ({"test": 1.5}, r"between 0 and 1"),
        ({"rows": 0}, r"at least 1"),
        ({"task": "speech"}, r"unknown task 'speech'"),
        ({"task": "image-classification"}, r"holds an image"),
        ({"image": "text", "task": "masked-lm"}, r"does not go with images"),
    ]
    for told, says in cases:
        with pytest.raises(ConfigError, match=says):
            read("a.csv", folder=tmp_path, seed=0, **told)
    with pytest.raises(ConfigError, match=r"name a file of it: notes.txt"):
        read("folder", folder=tmp_path, seed=0)
    for name, says in (("aa.csv", r"did you mean 'a.csv'"), ("digit", r"did you mean 'digits'")):
        with pytest.raises(MissingError, match=says):
            read(name, folder=tmp_path, seed=0)


def test_npz_that_cannot_be_images(tmp_path):
    cases = [
        ({"x": np.ones((4, 3)), "y": np.zeros(4)}, "holds a text or image"),
        ({"x": np.full((4, 2, 2), 300), "y": np.zeros(4, int)}, "outside 0..255"),
        ({"x": np.full((4, 2, 2), np.nan), "y": np.zeros(4, int)}, "not finite"),
        ({"x": np.ones((4, 2, 2, 7)), "y": np.zeros(4, int)}, "7 channels"),
        ({"x": np.ones((4, 2, 2)), "y": np.zeros(3, int)}, "3 values for 4 rows"),
        ({"x": np.ones((4, 2, 2)), "y": np.zeros((4, 2), int)}, "one label a row"),
        ({"x": np.ones((4, 2, 2)), "y": np.array([{}] * 4)}, "plain arrays"),
    ]
    for arrays, says in cases:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(ConfigError, match=says):
            read("a.npz", folder=tmp_path, seed=0)


def test_shared_sets():
    folder = shared_data("ag_news").parent
    raw = read("ag_news", folder=folder, seed=0)
    assert (len(raw.train), len(raw.test)) == (6000, 1600)
    assert raw.names == ("World", "Sports", "Business", "Sci/Tech")
    fashion = read("fashion_mnist.npz", folder=folder, rows=500, seed=0)
    assert fashion.train.image.shape == (500, 1, 28, 28)
    assert np.bincount(fashion.train.label).min() >= 45
