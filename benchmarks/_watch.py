"""Counts from outside, over every process of a run, what is decoded and what a vision tower sees.

A folder with a `sitecustomize` goes in front of PYTHONPATH: each Python that starts there writes a
line for each file that decord opens and for each clip that a tower of transformers is given. This
shares no code with the counters of the product.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

_SITE = """
import importlib.abc, importlib.machinery, os, sys

def note(kind, what):
    with open(os.environ["VERIPO_WATCH_LOG"], "a") as log:
        log.write(f"{kind}\\t{what}\\n")

def watch_decord(module):
    reader = module.VideoReader
    def opened(path, *args, **kwargs):
        note("decode", path)
        return reader(path, *args, **kwargs)
    module.VideoReader = opened

def watch_tower(module):
    for name in dir(module):
        if name.endswith(("VisionTransformerPretrainedModel", "VLVisionModel")):
            watch_forward(getattr(module, name))

def watch_forward(tower):
    forward = tower.forward
    def counted(self, hidden_states, grid_thw, *args, **kwargs):
        for grid in grid_thw.tolist():
            note("encode", grid)
        return forward(self, hidden_states, grid_thw, *args, **kwargs)
    tower.forward = counted

TOWERS = "transformers.models.{0}.modeling_{0}"
WATCHED = {"decord": watch_decord}
WATCHED |= {TOWERS.format(name): watch_tower for name in ("qwen2_5_vl", "qwen3_vl")}

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def run_and_watch(module):
            run(module)
            WATCHED[name](module)
        spec.loader.exec_module = run_and_watch
        return spec

sys.meta_path.insert(0, Finder())
"""


class Watch:
    """`environment` for the processes to be watched; then `decodes` by file, and `encodes`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(_SITE)
        self._log = folder / "log"
        self._log.touch()
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {
            "PYTHONPATH": os.pathsep.join(paths),
            "VERIPO_WATCH_LOG": str(self._log),
        }

    @property
    def decodes(self) -> Counter[str]:
        return Counter(what for kind, what in self._lines() if kind == "decode")

    @property
    def encodes(self) -> int:
        return sum(kind == "encode" for kind, _ in self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        lines = self._log.read_text().splitlines()
        return [(line.partition("\t")[0], line.partition("\t")[2]) for line in lines]
