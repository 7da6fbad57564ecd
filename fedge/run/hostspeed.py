"""How fast this host computes on one core, measured in about half a second: what the real clock's quotas begin from.

Arithmetic is told by a product of matrices, traffic by a copy, and what an operation costs beyond both by a small
model's training step. None of it goes into a result: it says whether the host can keep up, and the first turn of every
device then says it better.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from fedge.core.fit import fit
from fedge.core.task import Task
from fedge.emulation.malloc import pin_malloc
from fedge.emulation.process import die_with_parent
from fedge.emulation.roofline import Rates
from fedge.errors import FedgeError
from fedge.meter.work import Counter
from fedge.run.warmup import small_step

#: How often each is measured; the best counts, for everything that disturbs makes it slower.
_TIMES = 5
_SIDE, _PRODUCTS, _COPIED = 256, 40, 4 << 20


def host_rates(*, pinned: bool) -> Rates:
    """Flop/s, bytes/s of memory traffic and seconds an operation of one core of this host, in processor time.

    pinned: with malloc as devices behind a wall have it, which costs page faults. Raises FedgeError when it can't be
    measured.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()  # malloc stays as it was here
    if child == 0:
        try:
            die_with_parent(parent=parent)
            if pinned:
                pin_malloc()
            os.write(writing, json.dumps(asdict(_measured())).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    if not told:
        raise FedgeError("how fast this host is could not be measured: the process for it died")
    return Rates(**json.loads(told))


def _measured() -> Rates:
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    flops = 2 * _SIDE**3 * _PRODUCTS / _best(lambda: [a @ b for _ in range(_PRODUCTS)])
    source = torch.randn(_COPIED)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _best(lambda: target.copy_(source))
    model, batch = small_step()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = Task("image-classification", 4).loss

    def step() -> None:
        fit(model, [batch, batch], loss=loss, optimizer=optimizer, steps=2)

    with Counter() as counter:
        step()
    work = counter.work
    rest = _best(step) - work.flops / flops - work.traffic / bandwidth
    return Rates(flops, bandwidth, max(0.0, rest / work.ops))


def _best(action: Callable[[], object]) -> float:
    """Seconds of processor time at best, the first-time costs left out."""
    action()
    seconds = []
    for _ in range(_TIMES):
        begun = time.process_time()
        action()
        seconds.append(time.process_time() - begun)
    return max(min(seconds), 1e-9)
