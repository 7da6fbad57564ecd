"""TensorBoard's event files, read record by record and protobuf by protobuf."""

from __future__ import annotations

from pathlib import Path


def points(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Tag -> its (step, value, wall time), in the order of the only file of a folder, as far as it is written."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float, float]]] = {}
    (file,) = folder.iterdir()
    data = file.read_bytes()
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        body = data[at + 12 : at + 12 + size]  # 8 bytes of length and 4 of its check before it
        if len(body) < size:
            break
        event = Event.FromString(body)
        at += 12 + size + 4
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value, event.wall_time))
    return found
