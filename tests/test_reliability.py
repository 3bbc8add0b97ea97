"""docs/reliability.md says the truth: every kind of bad input that it lists gets the sentence that stands beside it.

After a sentence has changed: AFOV_WRITE_DOCS=1 .venv/bin/python -m pytest tests/test_reliability.py
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from manifests.config import ConfigError
from manifests.recipe import load_recipe
from manifests.sections.data import DataConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.storage.archive import pack, unpack
from manifests.storage.documents import decode, encode, seal
from manifests.storage.errors import StoreError
from manifests.storage.store import Store
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.nuscenes import NuScenesDataset
from pipeline.frame import Camera, Frame, FrameError
from pipeline.stages.index import check_frame
from pipeline.teachers.artifacts import read_text, read_triple
from tests.manifests.s3_server import line_to, uri_of
from tests.manifests.test_archive import FINGERPRINT, HOSTILE, KEY, made, members_of, write_tar

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- bad input: written by tests/test_reliability.py -->", "<!-- end of bad input -->"

Case = tuple[str, str, Callable[[], Any]]


def recipes(place: Path) -> Iterator[Case]:
    """Recipes and overrides, exit status 2."""
    texts = {
        "no TOML": "[data\n",
        "nested 5 000 deep": "[data]\nroot = " + "[" * 5000,
        "a setting outside a section": 'root = "x"\n',
        "an unknown section": "[grupo]\n",
        "an unknown setting": '[data]\nroot = "x"\n[group]\npolciy = "confidence"\n',
        "a word for a number": '[data]\nroot = "x"\n[run]\nworkers = "two"\n',
        "no finite number": '[data]\nroot = "x"\n[segment]\nscale = nan\n',
        "a value out of range": '[data]\nroot = "x"\n[run]\nworkers = 0\n',
        "a word that is not on offer": '[data]\nroot = "x"\n[group]\npolicy = "best"\n',
        "no data root": "[data]\n",
        "a frame excluded twice": '[data]\nroot = "x"\nexclude = ["a", "a"]\n',
        "an unknown teacher": '[data]\nroot = "x"\n[teacher]\nname = "nobody"\n',
        "a base that is itself": 'base = "recipe"\n[data]\nroot = "x"\n',
        "a base in another folder": 'base = "../recipe"\n',
    }
    for kind, text in texts.items():

        def read(text: str = text) -> Any:
            (place / "recipe.toml").write_text(text)
            return load_recipe(place / "recipe.toml")

        yield "recipe", kind, read
    yield "recipe", "an override without a value", lambda: load_recipe("city", ["group.policy"])


def stores(place: Path) -> Iterator[Case]:  # long: a list of cases
    """Tables, sidecars, manifests and refs, exit code 3."""
    store = made(place, "scene-1")
    [shard] = store.shards("target", FINGERPRINT).values()
    folder = place / "target" / FINGERPRINT
    content, sidecar = (folder / shard.name).read_bytes(), folder / f"scene-1.{KEY}.json"
    document = decode(sidecar.read_bytes(), "it")

    def with_bytes(changed: bytes) -> Callable[[], Any]:
        def read() -> Any:
            (folder / shard.name).write_bytes(changed)
            try:
                return store.read("target", FINGERPRINT, shard)
            finally:
                (folder / shard.name).write_bytes(content)

        return read

    def with_file(path: Path, text: bytes, ask: Callable[[], Any]) -> Callable[[], Any]:
        def read() -> Any:
            before = path.read_bytes()
            path.write_bytes(text)
            try:
                return ask()
            finally:
                path.write_bytes(before)

        return read

    def flipped(position: int) -> bytes:
        return content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]

    place_of_page = content.index(bytes(range(9)))
    yield "shard", "a flipped bit in a page", with_bytes(flipped(place_of_page))
    yield "shard", "a flipped bit in the footer", with_bytes(flipped(len(content) - 40))
    yield "shard", "cut off", with_bytes(content[:-1])
    yield "shard", "missing", lambda: store.read("target", FINGERPRINT, replace(shard, name=f"a.{KEY}.parquet"))
    listed = lambda: store.shards("target", FINGERPRINT)  # noqa: E731
    said: dict[str, dict[str, Any]] = {
        "that names a file outside": {"name": "../../x.parquet"},
        "of another table": {"stage": "points"},
        "of another shard": {"shard": "b", "name": f"b.{KEY}.{shard.sha256[:12]}.parquet"},
        "with endless rows": {"rows": 1e400},
    }
    for kind, values in said.items():
        yield "sidecar", kind, with_file(sidecar, seal(json.dumps(document | values).encode()), listed)
    yield "sidecar", "with a changed digit", with_file(sidecar, encode(document).replace(b"1", b"2", 1), listed)
    yield "sidecar", "that is a list", with_file(sidecar, b"[]", listed)
    yield "sidecar", "of 33 MiB", with_file(sidecar, b" " * (33 << 20), listed)
    manifest, ref = folder / "manifest.json", place / "refs" / "recipe.00000001.json"
    read_manifest = lambda: store.read_manifest("target", FINGERPRINT)  # noqa: E731
    whole = decode(manifest.read_bytes(), "it")
    said = {
        "of another table": {"fingerprint": "0" * 12},
        "without shards": {"shards": {}},
        "whose identity is a word": {"identity": "x"},
    }
    for kind, values in said.items():
        yield "manifest", kind, with_file(manifest, seal(json.dumps(whole | values).encode()), read_manifest)
    yield "ref", "without tables", with_file(ref, seal(b'{"a": 1}'), lambda: store.expect_ref("recipe"))
    for kind, text in {"cut off": ref.read_bytes()[:99], "empty": b""}.items():
        yield "ref", kind, with_file(ref, text, lambda: store.expect_ref("recipe"))
    yield "ref", "of a recipe never run", lambda: store.expect_ref("mine")
    yield "ref", "whose name is a path", lambda: store.expect_ref("../x")
    yield "store", "at a place that is a file", lambda: made(sidecar, "scene-1")
    yield "store", "of an unknown kind", lambda: Store.open("nowhere://x")

    def refused() -> Any:
        with line_to(9) as line:  # it answers by itself
            line.fails(10**6, "ExpiredToken")
            return Store.open(uri_of("bucket", line.port)).shards("target", FINGERPRINT)

    yield "store", "with expired credentials", refused


def archives(place: Path) -> Iterator[Case]:
    """Archives of tables, exit code 3; nothing of them appears."""
    pack(made(place / "from", "scene-1", "scene-" + "2" * 90), "recipe", ["target"], "x", place / "good.tar")
    for kind, (change, _) in HOSTILE.items():

        def read(change: Callable[[list[Any]], list[Any]] = change) -> Any:
            return unpack(
                write_tar(place / "evil.tar", change(members_of(place / "good.tar"))), Store.open(place / "to")
            )

        yield "archive", kind, read


def frames(place: Path) -> Iterator[Case]:
    """Sweeps, images and calibrations: the frame fails, is listed at the end, and its scene waits."""
    dataset = NuScenesDataset(DataConfig(root=str(place)))
    (place / "good.bin").write_bytes(np.ones(20, "<f4").tobytes())
    (place / "cut.bin").write_bytes(b"\0" * 33)
    (place / "nan.bin").write_bytes(np.full(20, np.nan, "<f4").tobytes())
    (place / "empty.bin").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), "JPEG")
    (place / "good.jpg").write_bytes(file.getvalue())
    (place / "cut.jpg").write_bytes(file.getvalue()[:300])
    (place / "page.jpg").write_bytes(b"<html>502 Bad Gateway</html>")
    (place / "labels.bin").write_bytes(b"\1" * 5)
    bomb = bytearray(b"P6 9000 9000 255\n")
    (place / "bomb.ppm").write_bytes(bomb)
    camera = Camera("CAM", "t", "good.jpg", 0, np.diag([9.0, 9.0, 1.0]), np.eye(4))
    good = Frame("f", "s", 0, "t", "good.bin", None, np.eye(4), np.eye(4), (camera,))
    check_frame(dataset, place, good)
    for kind, path in {
        "missing": "none.bin",
        "cut off": "cut.bin",
        "empty": "empty.bin",
        "with points that are not finite": "nan.bin",
        "outside the data root": "../x.bin",
    }.items():
        yield "sweep", kind, partial(check_frame, dataset, place, replace(good, lidar_path=path))
    broken: dict[str, dict[str, Any]] = {
        "image, missing": {"image_path": "none.jpg"},
        "image, cut off": {"image_path": "cut.jpg"},
        "image, a web page": {"image_path": "page.jpg"},
        "image, of 81 million pixels": {"image_path": "bomb.ppm"},
        "camera matrix, singular": {"intrinsics": np.diag([9.0, 0.0, 1.0])},
        "camera matrix, mirrored": {"intrinsics": np.diag([-9.0, 9.0, 1.0])},
        "camera matrix, not finite": {"intrinsics": np.full((3, 3), np.nan)},
        "pose, stretched": {"cam_from_lidar": np.diag([2.0, 1.0, 1.0, 1.0])},
        "pose, not finite": {"cam_from_lidar": np.full((4, 4), np.nan)},
    }
    for kind, changes in broken.items():
        one = replace(camera, **changes)
        yield *kind.split(", "), lambda one=one: check_frame(dataset, place, replace(good, cameras=(one,)))  # type: ignore[misc]
    yield "labels", "for other points", lambda: check_frame(dataset, place, replace(good, label_path="labels.bin"))


def logs(place: Path) -> Iterator[Case]:
    """Your own logs, exit status 2."""
    from tests.pipeline.scenes import SMALL

    (place / "drive").mkdir(parents=True)
    for kind, old, new in (
        ("an unknown key", "points =", "pionts ="),
        ("a file name without its frame", "front/{frame}.png", "front/1.png"),
        ("a file outside the scene", "points/{frame}", "../{frame}"),
        ("a camera placed twice over", "cam_from_lidar =", "ego_from_cam = {}\ncam_from_lidar ="),
        ("a time that is no whole number", "1000000", "1.5"),
        ("a frame without a pose", "world_from_ego = { rotation = [1, 0, 0, 0], translation = [0, 0, 0] }", ""),
    ):

        def read(text: str = SMALL.replace(old, new)) -> Any:
            (place / "drive" / "scene.toml").write_text(text)
            return list(FolderDataset(DataConfig(dataset="folder", root=str(place))).frames())

        yield "scene.toml", kind, read


def artefacts(place: Path) -> Iterator[Case]:
    """Files of official teachers: the frame fails, and every fault of its files is listed."""
    config = ArtifactsConfig(folder=str(place))

    def good() -> None:
        Image.fromarray(np.array([[1, 1, 1, 2], [0, 0, 2, 2]], np.uint8)).save(place / "a.png")
        records = [{"id": 1, "category_id": 2, "area": 3}, {"id": 2, "category_id": 0, "area": 3}]
        (place / "a.json").write_text(json.dumps(records))
        torch.save(torch.tensor([[0.0, 0.0], [0.6, 0.8], [1.0, 0.0]]), place / "a.pt")

    def saved(thing: Any) -> bytes:
        torch.save(thing, file := io.BytesIO())
        return file.getvalue()

    colour = io.BytesIO()
    Image.new("RGB", (4, 2)).save(colour, "PNG")
    for kind, name, content in (
        ("that is no PNG", "a.png", b"GIF89a"),
        ("of colours", "a.png", colour.getvalue()),
        ("that is no JSON", "a.json", b"[{"),
        ("nested 200 000 deep", "a.json", b"[" * 200_000),
        ("that is no list", "a.json", b"{}"),
        ("of another dictionary", "a.json", b'[{"id": 1, "category_id": 99}, {"id": 2, "category_id": 0}]'),
        ("of fewer segments", "a.json", b'[{"id": 1, "category_id": 0}]'),
        ("that would run code", "a.pt", saved(print)),
        ("of whole numbers", "a.pt", saved(torch.ones(3, 2, dtype=torch.int64))),
        ("with a row too few", "a.pt", saved(torch.ones(2, 2))),
        ("of another length", "a.pt", saved(torch.zeros(3, 7))),
        ("that is not finite", "a.pt", saved(torch.full((3, 2), torch.inf))),
    ):

        def read(name: str = name, content: bytes = content) -> Any:
            good()
            (place / name).write_bytes(content)
            problems: list[str] = []
            read_triple(config, "a", 3, 2, problems, (4, 2))
            if problems:
                raise FrameError("; ".join(problems))

        yield f"mask {name[2:]}", kind, read

    def text() -> Any:
        torch.save(torch.ones(9, 2), place / "text_embedding.pt")
        return read_text(config, 3)

    yield "text vectors", "of another dictionary", text


GROUPS = (recipes, stores, archives, frames, logs, artefacts)


def document(place: Path) -> tuple[str, int]:
    """Return the section of the page, and how many kinds of bad input it lists."""
    lines: list[str] = []
    n_kinds = 0
    for group in GROUPS:
        lines += ["", f"**{(group.__doc__ or '').rstrip('.')}.**", "", "| bad input | what is said |", "|---|---|"]
        (place / group.__name__).mkdir()
        for what, kind, action in group(place / group.__name__):
            try:
                action()
            except (ConfigError, StoreError, FrameError) as error:
                said = " ".join(str(error).replace(str(place / group.__name__), "…").split())
            else:
                raise AssertionError(f"{what} {kind}: it was taken")
            said = re.sub(r"\b[0-9a-f]{12,64}\b", "…", said)
            said = re.sub(r"scene-2{20,}", "scene-2…", said).replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| {what}, {kind} | {said[:300]}{'…' if len(said) > 300 else ''} |")
            n_kinds += 1
    head = [BEGIN, f"{n_kinds} kinds; `…` stands for a folder or a digest."]
    return "\n".join([*head, *lines, END]), n_kinds


def test_the_page_says_what_is_said(tmp_path: Path) -> None:
    section, n_kinds = document(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    start, stop = page.index(BEGIN), page.index(END) + len(END)
    if os.environ.get("AFOV_WRITE_DOCS") == "1":
        PAGE.write_text(page[:start] + section + page[stop:], encoding="utf-8")
        page = PAGE.read_text(encoding="utf-8")
        stop = page.index(END) + len(END)
    assert n_kinds >= 40
    assert page[start:stop].splitlines() == section.splitlines()
