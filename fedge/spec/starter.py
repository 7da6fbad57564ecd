"""The federation that ``fedge init`` writes: small, commented, and it runs as it is."""

from __future__ import annotations

import os
from pathlib import Path

from fedge.errors import ConfigError, Problem

STARTER = """\
# A small federation: eight devices of four kinds learn to read digits. `fedge up` runs it in some two minutes.
# `fedge config` prints it with every default; `fedge plan` shows what each device can afford.
name: starter
seed: 7

model: vit-nano                   # bundled; or a Hugging Face folder or Hub id, or module:function of your own

data:
  dataset: digits                 # bundled; or a csv, jsonl, parquet or npz file, or a folder of images
  test: 20%
  partition: {dirichlet: 0.5}     # uneven labels, less even the smaller alpha is; or iid, {shards: 2}, {by: column}

devices:                          # `fedge devices` lists profiles and networks
  zero:  {profile: pi-zero-2w, count: 2, network: wifi4, memory: 7MiB}    # memory: what its owner grants
  pi:    {profile: pi-4b-4g, count: 2}
  phone: {profile: pixel-6, count: 3, network: lte-cat4, memory: 9MiB, availability: 90%}
  box:   {profile: jetson-orin-nano-8g}

stages:                           # `fedge methods` lists methods, `fedge methods lora` the fields of one
  - train:                        # the whole model, on every device
      method: fedavg
      rounds: 20
      steps: 10
      batch: 32
      lr: 2e-3
  - customize:                    # each device picks the best candidate that its memory, time and network afford
      method: auto
      candidates: [lora, bitfit, head]
      prefer: quality
      rounds: 4
      deadline: 2min
  - deploy:                       # exits after these blocks, so that each device runs as deep as it can
      method: anytime
      exits: [1, 2, 4]
      rounds: 3
"""


def write_starter(path: Path, *, force: bool = False) -> Path:
    """Write the starter as ``path`` (a .yaml file) or into the folder ``path``, and return the file.

    Raises ConfigError when there is a file already and ``force`` isn't given, or it can't be written.
    """
    file = path if path.suffix in (".yaml", ".yml") and not path.is_dir() else path / "federation.yaml"
    if (file.exists() or file.is_symlink()) and not force:
        raise ConfigError(Problem("is there already", file=str(file), hint="--force overwrites it"))
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(STARTER, encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise ConfigError(Problem(f"can't be written: {error.strerror}", file=str(file))) from None
    return file
