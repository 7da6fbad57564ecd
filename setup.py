"""Carries ``devices/`` and ``federations/`` into the wheel as ``fedge/_shipped``; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithShipped(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout is read where it is
            return
        for kind in ("devices", "federations"):
            target = Path(self.build_lib) / "fedge" / "_shipped" / kind
            shutil.rmtree(target, ignore_errors=True)
            if (HERE / kind).is_dir():
                shutil.copytree(HERE / kind, target, ignore=shutil.ignore_patterns("__pycache__", "runs", ".*"))


setup(cmdclass={"build_py": BuildWithShipped})
