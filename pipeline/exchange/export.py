"""Our segments and point labels as the files that the official AFOV scripts write, so that their trainer can read them.

`superpixels/` holds what teacher `artifacts` reads back (pipeline.teachers.artifacts describes png, json and pt), and
`lidarseg_ov/<sweep token>_lidarseg.npy` int32, one value per point in the order of the sweep file: 100 x superpoint +
fine class, -1 for none. Label maps are written at the size of their image, as the reference looks pixels up in them.
Layout "san" has areas and one matrix of vectors per image; "fcclip" says what is a thing, and holds the matrix twice,
as we keep one vector per segment, and in the text vectors a last row of zeros, which the reference drops, for "void".

`export.json` names the tables and the shards that are written whole. It is what a resumed export trusts, together with
the presence of every file: files of a shard that it does not name are written again, over the old ones, each put in
place in one step. An image's PNG comes last, because the reference leaves out frames that lack one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from manifests.asked import tables_of
from manifests.config import ConfigError
from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.records.codec import as_document, as_record
from manifests.records.labels import ExportedShard, ExportIdentity, ExportRecord
from manifests.sections.teachers.artifacts import TEXT
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.base import Failed
from manifests.tables.sensors import Index, Tokens
from manifests.tables.superpoints import Group
from manifests.tables.teacher import Segment, Text
from pipeline.frame import Camera, Frame
from pipeline.look.browse import Track
from pipeline.stages.segment import views_of
from pipeline.teachers.artifacts import PROMPTS, names_a_file
from superpixels.lifting import official_point_labels
from superpixels.segments import Segments

LAYOUTS = ("san", "fcclip")
MASKS, POINT_LABELS, RECORD = "superpixels", "lidarseg_ov", "export.json"

TABLES_READ = ("index", "text", "segment", "group")

MOST_IN_8_BITS = 255
MOST_IN_REFERENCE = 149  # its pre-training counts the segments of a batch in steps of `superpixel_size`, 150


@dataclass(frozen=True)
class Exported:
    """What is in the folder now: frames written by this run, frames there before, and the most segments per image."""

    written: int
    kept: int
    most_segments: int
    n_dims: int

    def notes(self) -> list[str]:
        """Return what a user of the reference has to know, as sentences."""
        found = []
        if self.most_segments > MOST_IN_8_BITS:
            found.append(
                f"an image has {self.most_segments} segments and a PNG of 16 bits: teacher artifacts reads it, the "
                "reference does not"
            )
        elif self.most_segments > MOST_IN_REFERENCE:
            found.append(
                f"an image has {self.most_segments} segments; set superpixel_size above that in the reference's "
                f"configuration, where {MOST_IN_REFERENCE + 1} would mix up the segments of neighbouring images"
            )
        if self.n_dims != 768:
            found.append(f"vectors have {self.n_dims} values; the reference's configuration has to say so, it says 768")
        return found


def export(  # long: one file of the format after another
    recipe: Recipe,
    out: Path,
    layout: str = "san",
    sixteen_bit: bool = False,
    track: Track = lambda items, what: items,
) -> Exported:
    """Write the recipe's segments and point labels below `out`; what an earlier export of the same tables wrote stays,
    but for frames that are excluded by now.

    Raises ConfigError for an unknown layout, StoreError for a table that is not built, for a folder that holds
    something else, and for more than 255 segments in an image unless `sixteen_bit`: such images then get PNGs that
    only we read.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f'layout is "{layout}"; choose "san" or "fcclip"')
    store = Store.open(recipe.run.store)
    ref = tables_of(store, recipe, TABLES_READ)
    tables = {name: ref.table(name) for name in TABLES_READ}
    text = text_vectors(store, tables["text"], recipe)
    fingerprints = {name: table.fingerprint for name, table in tables.items()}
    identity = ExportIdentity(recipe.name, layout, sixteen_bit, fingerprints)
    done = open_folder(out, identity)
    (out / MASKS).mkdir(exist_ok=True)
    (out / POINT_LABELS).mkdir(exist_ok=True)
    matrix = np.concatenate([text, np.zeros((1, text.shape[1]), np.float32)]) if layout == "fcclip" else text
    put_tensors(out / MASKS / TEXT, matrix)
    put(out / MASKS / PROMPTS, lambda file: file.write("\n".join([*recipe.ontology.prompts, ""]).encode()))

    written = kept = most = 0
    by_shard = {name: {shard.shard: shard for shard in table.shards} for name, table in tables.items()}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for shard in track(list(by_shard["index"]), "export"):
            sources = {name: by_shard[name][shard] for name in ("index", "segment", "group")}
            content = {name: source.sha256 for name, source in sources.items()}
            frames = list(frames_of(store, tables, sources, ref.excluded))
            remove_excluded(out, store, tables["index"], sources["index"], ref.excluded)
            before = done.get(shard)
            if before and before.content == content and all(complete(out, frame) for frame, _ in frames):
                kept += len(frames)
                most = max(most, before.most_segments)
                continue
            most_here = 0
            for frame, read in frames:
                segment, group = read()
                views = views_of(segment)
                most_here = max([most_here, *map(len, views)])
                writer = ImageWriter(out / MASKS, layout, sixteen_bit, recipe.ontology, text.shape[1])
                list(threads.map(writer, frame.cameras, views))
                n_fine = len(recipe.ontology.fine)
                label = official_point_labels(group.point_superpoint, group.superpoint_fine, n_fine=n_fine)
                put(point_label_path(out, frame), lambda file, label=label: np.save(file, label))  # type: ignore[misc]
            written += len(frames)
            most = max(most, most_here)
            done[shard] = ExportedShard(content, most_here)
            put_record(out, ExportRecord(identity, done))
    return Exported(written, kept, most, text.shape[1])


def text_vectors(store: Store, table: TableRef, recipe: Recipe) -> npt.NDArray[np.float32]:
    """Return one vector per prompt; raises StoreError if the recipe's dictionary is not the one they were made for."""
    rows = store.every(Text, table.fingerprint, table.shards)
    if tuple(row.prompt for row in rows) != recipe.ontology.prompts:
        raise StoreError(f"the class dictionary has changed since `text` was built; run: {recipe.make('group')}")
    vectors: npt.NDArray[np.float32] = np.stack([row.vector for row in rows])
    return vectors


def frames_of(
    store: Store, tables: Mapping[str, TableRef], sources: Mapping[str, ShardFile], excluded: tuple[str, ...]
) -> list[tuple[Frame, Callable[[], tuple[Segment, Group]]]]:
    """Return the frames of a shard that did not fail, each with a function that reads its segments and labels.

    Raises StoreError for a frame whose tokens name no file.
    """
    readers = {name: store.open_shard(name, tables[name].fingerprint, source) for name, source in sources.items()}
    bad = set(excluded).union(*(source.failed for source in sources.values()))
    found: list[tuple[Frame, Callable[[], tuple[Segment, Group]]]] = []
    for position, row in enumerate(readers["index"].records(Index)):
        if isinstance(row, Failed) or row.frame_id in bad:
            continue
        frame = Frame.of(row)
        for token in (frame.lidar_token, *(camera.token for camera in frame.cameras)):
            if not names_a_file(token):
                raise StoreError(f"frame {frame.frame_id}: token {token!r} is no file name, so it cannot be exported")

        def read(position: int = position) -> tuple[Segment, Group]:
            segment, group = readers["segment"].record(position, Segment), readers["group"].record(position, Group)
            assert isinstance(segment, Segment) and isinstance(group, Group), "sidecars name frames that failed"
            return segment, group

        found.append((frame, read))
    return found


def remove_excluded(out: Path, store: Store, index: TableRef, shard: ShardFile, excluded: tuple[str, ...]) -> None:
    """Remove what an earlier export wrote of frames that are excluded by now; the images' PNGs go first."""
    if not excluded:
        return
    for row in store.records(Tokens, index.fingerprint, shard):
        if isinstance(row, Tokens) and row.frame_id in excluded:
            tokens = [token for token in row.camera_token if names_a_file(token)]
            for kind in ("png", "json", "pt"):
                for token in tokens:
                    (out / MASKS / f"{token}.{kind}").unlink(missing_ok=True)
            if names_a_file(row.lidar_token):
                (out / POINT_LABELS / f"{row.lidar_token}_lidarseg.npy").unlink(missing_ok=True)


def point_label_path(out: Path, frame: Frame) -> Path:
    """Return the file of a frame's point labels."""
    return out / POINT_LABELS / f"{frame.lidar_token}_lidarseg.npy"


def complete(out: Path, frame: Frame) -> bool:
    """Return whether every file of a frame is there."""
    triples = (out / MASKS / f"{one.token}.{kind}" for one in frame.cameras for kind in ("json", "pt", "png"))
    return point_label_path(out, frame).is_file() and all(path.is_file() for path in triples)


@dataclass(frozen=True, eq=False)
class ImageWriter:
    """Writes the three files of one image."""

    folder: Path
    layout: str
    sixteen_bit: bool
    ontology: Ontology
    n_dims: int

    def __call__(self, camera: Camera, segments: Segments) -> None:
        """Write json, pt and last png; raises StoreError for segments that the format cannot hold."""
        if len(segments) > MOST_IN_8_BITS and not self.sixteen_bit:
            raise StoreError(
                f"image {camera.token} has {len(segments)} segments, and the reference reads PNGs of 8 bits, at most "
                f'{MOST_IN_8_BITS}: raise segment.min_area_px, use segment.split = "class", or choose --sixteen-bit, '
                "which only teacher artifacts reads"
            )
        if not segments.area_px.all():
            raise StoreError(f"image {camera.token} has segments without pixels, which the format cannot hold")
        label_map = image_sized(segments, camera)
        ids = label_map.astype(np.uint8) if len(segments) <= MOST_IN_8_BITS else label_map
        vectors = np.zeros((len(segments) + 1, self.n_dims), np.float32)
        if len(segments):
            vectors[1:] = segments.vector
        records = json.dumps(self.records(label_map, segments)).encode()
        put(self.folder / f"{camera.token}.json", lambda file: file.write(records))
        put_tensors(self.folder / f"{camera.token}.pt", *([vectors] if self.layout == "san" else [vectors, vectors]))
        put_png(self.folder / f"{camera.token}.png", ids)

    def records(self, label_map: npt.NDArray[np.uint16], segments: Segments) -> list[dict[str, bool | int]]:
        """Return what the json holds of each segment, in order of id."""
        prompts = segments.prompt_id.tolist()
        if self.layout == "fcclip":
            thing = self.ontology.thing_of_prompt
            return [{"id": k, "isthing": bool(thing[p]), "category_id": p} for k, p in enumerate(prompts, start=1)]
        area = np.bincount(label_map.ravel(), minlength=len(prompts) + 1)
        return [{"id": k, "category_id": p, "area": int(area[k])} for k, p in enumerate(prompts, start=1)]


def image_sized(segments: Segments, camera: Camera) -> npt.NDArray[np.uint16]:
    """Return the label map at the size of the image; a pixel has the id of the map's pixel that covers it.

    The same rule by which `group` looks up points, so both agree to the last point.
    """
    row = np.arange(camera.height_px) * segments.height_px // camera.height_px
    col = np.arange(camera.width_px) * segments.width_px // camera.width_px
    sized: npt.NDArray[np.uint16] = segments.label_map()[row[:, None], col]
    return sized


# -- files that appear whole or not at all


def open_folder(out: Path, identity: ExportIdentity) -> dict[str, ExportedShard]:
    """Return what is written already of an export of these tables; a new folder is made, with an empty record.

    Raises StoreError if the folder holds anything that such an export did not write.
    """
    path = out / RECORD
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise StoreError(
                f"{out} exists and holds no {RECORD}; give a new folder, or an earlier export to go on with"
            )
        out.mkdir(parents=True, exist_ok=True)
        put_record(out, ExportRecord(identity, {}))
        return {}
    try:
        record = as_record(ExportRecord, json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        raise StoreError(f"{path} is damaged; remove the folder and export again") from None
    if record.export != identity:
        raise StoreError(f"{out} holds an export of other tables, or with other options; give a new folder")
    return dict(record.shards)


def put_record(out: Path, record: ExportRecord) -> None:
    """Write which shards are whole."""
    content = json.dumps(as_document(record), indent=1).encode()
    put(out / RECORD, lambda file: file.write(content))


def put_tensors(path: Path, *matrices: npt.NDArray[np.float32]) -> None:
    """Write a matrix, or a list of several, as torch saves it."""
    import torch

    tensors = [torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in matrices]
    put(path, lambda file: torch.save(tensors[0] if len(tensors) == 1 else tensors, file))


def put_png(path: Path, ids: npt.NDArray[np.integer[Any]]) -> None:
    """Write ids of 8 or 16 bits as a grey PNG."""
    from PIL import Image

    put(path, lambda file: Image.fromarray(ids).save(file, format="PNG", compress_level=1))


def put(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file under another name and put it in place in one step, so that nobody sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
