"""Damaged YAML before the reader of federations and of device profiles."""

from __future__ import annotations

from pathlib import Path
from random import Random

from fedge.spec import load_federation, resolved
from fedge.spec.device import load_profile
from fedge.spec.shipped import shipped
from tools.fuzz.mutate import damaged, relined

CASES = Path(__file__).parents[2] / "tests" / "spec" / "cases"


class TextTarget:
    """Fulfils ``campaign.Target``. What is read without a complaint has to write itself down and be read again."""

    name = "yaml"

    def __init__(self, place: Path):
        self.counted = 0
        self._place = place
        own = [*CASES.glob("*/federation.yaml"), *shipped("federations").glob("*.yaml")]
        # what is right to begin with comes further when it is damaged
        right = [path for path in own if path.parent.name.startswith("good-") or path.name != "federation.yaml"]
        self._federations = [_text(path) for path in (*sorted(own), *sorted(right) * 8)]
        self._devices = [_text(path) for path in sorted(shipped("devices").glob("*.yaml"))]
        self._given = b""

    def case(self, draw: Random) -> str:
        self.counted += 1
        device = draw.random() < 0.1
        texts = self._devices if device else self._federations
        text = draw.choice(texts)
        if draw.random() < 0.8:
            self._given = relined(text, draw, texts).encode("utf-8", "surrogatepass")
        else:
            self._given = damaged(text.encode(), draw, draw.choice(texts).encode())
        path = self._place / "damaged.yaml"
        path.write_bytes(self._given)
        if device:
            load_profile(path)
            return "read"
        spec = load_federation(path)
        again = self._place / "again.yaml"
        again.write_text(resolved(spec))
        assert load_federation(again) == spec
        return "read"

    def input(self) -> bytes:
        return self._given

    def close(self) -> None:
        pass


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")
