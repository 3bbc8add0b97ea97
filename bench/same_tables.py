"""Whether tables have the bytes that an older version of the code gives them: both build them anew, in one run.

`python -m bench.same_tables --root ../shared/golden` asks git for commit 9af4202 (version 0.1.0) and compares every
column that this version wrote: of simulated and real frames, in stages without a network and in dense CLIP with
`decode = "full"`, and with `--city` of six frames of the synthetic city that the older version draws. Columns that a
later version of a stage was meant to change are named with the reason; any other difference is exit status 1. `--write`
keeps the digests of the older version for tests/pipeline/test_same_tables.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

COMMIT = "9af4202"
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "tables.json"
MEANT = {
    "index.world_from_lidar": "poses are multiplied in single steps by now, so that no processor rounds otherwise",
    "index.cam_from_lidar": "likewise",
}
"""Columns with other bits, and why."""
AS_THEN = "[correct]\nfill_reach_m = 0.0\nfill_certainty = 0.0\nfill_agreement = 0.0\n"
"""Flat interaction names what evidence does not reach, as it did then; `correct` 3 leaves it unnamed by default."""
MODES = ("naclip", "clearclip", "sclip", "vanilla")
"""Of dense CLIP; "sc" and "maskclip" follow their authors since, with other features, under another version."""


class NoCommit(RuntimeError):
    """The older version is not at hand: an archive, or a clone without history."""


Columns = Mapping[str, str]
"""By `table.column`, the sha256 of its values in all shards."""


@dataclass(frozen=True)
class Case:
    """Tables to build: from which root, by which teacher; what only this version has to be told."""

    name: str
    root: Path
    teacher: str
    targets: str
    only_new: str = ""
    data: str = ""

    def recipe(self, store: Path, new: bool) -> str:
        """Return the recipe as text."""
        teacher, more = self.teacher, ""
        if new:
            teacher, _, more = f"{self.teacher}{self.only_new}".partition("[correct]")
            more = more and f"[correct]{more}"
        target = '[target]\nlabels = "vote+correct"\n'
        return (
            f'[data]\nroot = "{self.root}"\n{self.data}[teacher]\n{teacher}{more}{target}[run]\nstore = "{store}"\n'
            "progress = false\n"
        )


def cases(golden: Path) -> Iterator[Case]:
    """Yield the cases that the folder of golden files has the data for."""
    roots = {
        "simulated": (golden / "nuscenes_tiny", golden / "superpixels_tiny"),
        "real": (golden / "real_nuscenes" / "root", golden / "real_nuscenes" / "superpixels"),
    }
    for name, (root, masks) in roots.items():
        yield artifacts(name, root, masks)
    for mode in MODES:
        teacher = f'name = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\nshort_side_px = 64\nmode = "{mode}"\n'
        yield Case(mode, roots["simulated"][0], teacher, "encode", 'decode = "full"\npositions = "exact"\n')


def artifacts(name: str, root: Path, masks: Path, data: str = "", void: str = "true") -> Case:
    """Return the case of finished masks, whose tables go all the way to what students learn."""
    teacher = f'name = "artifacts"\nfolder = "{masks}"\n'
    return Case(name, root, teacher, "pack,correct,label", f"void = {void}\n{AS_THEN}", data)


def pipeline(tree: Path, *arguments: str) -> None:
    """Run a command of the pipeline of some tree; raises RuntimeError with what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "pipeline", *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} in {tree}: {done.stderr[-2000:]}")


def build(case: Case, tree: Path, folder: Path, new: bool) -> Columns:
    """Build the tables of a case with the code of some tree, and return the digests of their columns."""
    folder.mkdir(parents=True)
    recipe = folder / "same.toml"
    recipe.write_text(case.recipe(folder / "store", new))
    pipeline(tree, "run", case.targets, str(recipe), "--set", "run.pool=inline")
    return columns_of(folder / "store")


def columns_of(store: Path) -> dict[str, str]:
    """Return the sha256 of the values of every column of a store's tables, its shards in the order of their names."""
    found: dict[str, Any] = {}
    for path in sorted(store.glob("*/*/*.parquet"), key=lambda path: (path.parts[-3], path.name.split(".")[0])):
        table = pq.read_table(path)
        for name in table.column_names:
            digest = found.setdefault(f"{path.parts[-3]}.{name}", hashlib.sha256())
            digest.update(repr(table[name].to_pylist()).encode())
    return {name: digest.hexdigest() for name, digest in found.items()}


def differences(then: Columns, now: Columns) -> list[str]:
    """Return the columns that were there then, and are not there now or have other bytes."""
    return [name for name, digest in then.items() if now.get(name) != digest]


def tree_of(commit: str, folder: Path) -> Path:
    """Return a folder with the files of a commit; raises NoCommit where git does not have it."""
    folder.mkdir()
    root = Path(__file__).parents[1]
    asked = subprocess.run(["git", "-C", str(root), "archive", commit], capture_output=True)
    if asked.returncode:
        raise NoCommit(f"git has no commit {commit} here: {asked.stderr.decode(errors='replace').strip()}")
    packed = asked.stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
    return folder


def city(tree: Path, folder: Path) -> Case:
    """Return the case of a synthetic city: both versions build from what the older one drew and exported."""
    root, store, masks = folder / "city", folder / "drawn", folder / "masks"
    pipeline(tree, "city", str(root), "--size", "tiny")
    options = ["--set", f"data.root={root}", "--set", f"run.store={store}", "--set", "run.pool=inline"]
    pipeline(tree, "run", "group", "city", *options)
    pipeline(tree, "export", "city", str(masks), *options)
    return artifacts("city", root, masks / "superpixels", 'version = "v1.0-city"\nsplit = "all"\n', void="false")


def main(arguments: list[str] | None = None) -> None:
    """Print how many columns are equal, and which are not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--root", type=Path, default=Path("../shared/golden"), help="folder of the golden files")
    parser.add_argument("--commit", default=COMMIT)
    parser.add_argument("--city", action="store_true", help="the synthetic city as well")
    parser.add_argument("--write", action="store_true", help="keep the older version's digests for the tests")
    options = parser.parse_args(arguments)
    here, kept, wrong = Path(__file__).resolve().parents[1], {}, False
    with tempfile.TemporaryDirectory(prefix="afov-same-") as name:
        folder = Path(name)
        old = tree_of(options.commit, folder / "tree")
        listed = [*cases(options.root.resolve()), *([city(old, folder)] if options.city else [])]
        for case in listed:
            then = build(case, old, folder / "then" / case.name, new=False)
            now = build(case, here, folder / "now" / case.name, new=True)
            kept[case.name] = then
            other = differences(then, now)
            unmeant = [one for one in other if one not in MEANT]
            wrong = wrong or bool(unmeant)
            told = f"{len(then) - len(other)} of {len(then)} columns have the bytes of {options.commit}"
            print(f"{case.name:<12} {told}{f'; NOT {unmeant}' if unmeant else ''}", flush=True)
    for column, reason in MEANT.items():
        print(f"meant to differ: {column} ({reason})")
    if options.write:
        GOLDEN.write_text(json.dumps({name: kept[name] for name in ("simulated", "real")}, indent=1) + "\n")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
