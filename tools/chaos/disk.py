"""A small disk under a run's folder, which can be filled to the last byte: a tmpfs, which takes root to mount."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fedge.errors import FedgeError

#: Bytes of the disk; a tiny federation's run takes less than a tenth of it.
SIZE = 16 << 20
_BALLAST = "ballast"
_PAGE = bytes(4096)


class Disk:
    """A tmpfs at ``place``, which is made. FedgeError where it can't be mounted."""

    def __init__(self, place: Path):
        place.mkdir(parents=True, exist_ok=True)
        self._place = place
        self.full = False
        told = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "fedge-chaos", str(place)]
        done = subprocess.run(told, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise FedgeError(
                f"no disk to fill: {said[-1] if said else 'mount failed'}", hint="--victims without disk needs no root"
            )

    def fill(self) -> None:
        """Leave no room, however little is left."""
        self.full = True
        try:
            with (self._place / _BALLAST).open("ab", buffering=0) as out:
                while out.write(_PAGE) == len(_PAGE):
                    pass
        except OSError:
            pass  # full: that was wanted

    def clear(self) -> None:
        """Give the room back."""
        self.full = False
        (self._place / _BALLAST).unlink(missing_ok=True)

    def close(self) -> None:
        """Keep what is on it in a folder of the same name, and unmount it."""
        self.clear()
        kept = self._place.with_name(self._place.name + "-kept")
        subprocess.run(["cp", "-a", str(self._place), str(kept)], check=False, capture_output=True)
        subprocess.run(["umount", "-l", str(self._place)], check=False, capture_output=True)
        if kept.is_dir():
            self._place.rmdir()
            kept.rename(self._place)
