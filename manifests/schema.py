"""The Arrow schema of every table: one row is one frame, every column says its unit, its shape and what it means.

Numeric arrays travel as raw little-endian bytes in `large_binary` columns: measured against Arrow list columns, they
are read several times faster and cost no dictionary, statistics or offsets per value. The element type and the shape
stand in the metadata of the field. A name in a shape (`n_points`) is a length that all columns of a row agree on.

Conventions held by all tables: row *i* of shard *k* is the same frame in every table. A frame that a stage could not
handle keeps its row with `status` "failed" and a `reason`; all its other columns are null. Pixels are (row, column)
from the top left, pixel centres at integers. Points keep the order of the sweep. Class 0 and segment 0 mean "none".
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

TENSORS = pa.list_(
    pa.struct(
        [
            pa.field("name", pa.string()),
            pa.field("dtype", pa.string()),
            pa.field("shape", pa.list_(pa.int64())),
            pa.field("data", pa.large_binary()),
        ]
    )
)


def scalar(name: str, kind: pa.DataType, doc: str, unit: str = "") -> pa.Field:
    """Return a column with one value a row."""
    return described(name, kind, {"doc": doc, "unit": unit})


def array(name: str, dtype: str, shape: tuple[str | int, ...], doc: str, unit: str = "") -> pa.Field:
    """Return a column with one array a row: `dtype` as NumPy spells it (`<f4`), `shape` of numbers and length names."""
    meaning = {"doc": doc, "unit": unit, "dtype": dtype, "shape": ",".join(map(str, shape))}
    return described(name, pa.large_binary(), meaning)


def strings(name: str, shape: tuple[str], doc: str) -> pa.Field:
    """Return a column with one list of strings a row."""
    return described(name, pa.list_(pa.string()), {"doc": doc, "shape": shape[0]})


def tensors(name: str, doc: str) -> pa.Field:
    """Return a column with named arrays of free type and shape: what a teacher chooses to cache."""
    return described(name, TENSORS, {"doc": doc})


def described(name: str, kind: pa.DataType, meaning: dict[str, str]) -> pa.Field:
    """Return a nullable field with its meaning as metadata."""
    return pa.field(name, kind, metadata={key: text for key, text in meaning.items() if text})


def table(*columns: pa.Field) -> pa.Schema:
    """Return the schema of a table of frames: the columns that every such table has, then its own."""
    return pa.schema(
        [
            scalar("frame_id", pa.string(), "the frame's name; nuScenes: token of the sample"),
            scalar("status", pa.string(), '"ok", or "failed" where the stage could not handle the frame'),
            scalar("reason", pa.string(), 'why the frame failed; null where status is "ok"'),
            *columns,
        ]
    )


INDEX = table(
    scalar("scene", pa.string(), "scene (drive) the frame belongs to"),
    scalar("timestamp_us", pa.int64(), "time of the LiDAR sweep", "us"),
    scalar("lidar_token", pa.string(), "the data set's own name of the sweep"),
    scalar("lidar_path", pa.string(), "sweep file, relative to the data root"),
    scalar("lidar_bytes", pa.int64(), "size of the sweep file when it was checked", "byte"),
    scalar("lidar_sha256", pa.string(), "digest of the sweep file"),
    scalar("n_points", pa.int64(), "points in the sweep"),
    scalar("label_path", pa.string(), "file of true point labels, relative to the data root; null without labels"),
    scalar("label_sha256", pa.string(), "digest of that file; null where it is not on disk"),
    array("ego_from_lidar", "<f8", (4, 4), "pose of the LiDAR on the vehicle", "m"),
    array("world_from_lidar", "<f8", (4, 4), "pose of the LiDAR in the world at the time of the sweep", "m"),
    strings("camera", ("n_cameras",), "camera names, in the order that all tables count views in"),
    strings("camera_token", ("n_cameras",), "the data set's own name of each image"),
    strings("image_path", ("n_cameras",), "image files, relative to the data root"),
    array("image_bytes", "<i8", ("n_cameras",), "sizes of the image files when they were checked", "byte"),
    strings("image_sha256", ("n_cameras",), "digests of the image files"),
    array("image_timestamp_us", "<i8", ("n_cameras",), "times of the images", "us"),
    array("width_px", "<i4", ("n_cameras",), "image widths", "px"),
    array("height_px", "<i4", ("n_cameras",), "image heights", "px"),
    array("intrinsics", "<f8", ("n_cameras", 3, 3), "pinhole matrices of the rectified images", "px"),
    array(
        "cam_from_lidar",
        "<f8",
        ("n_cameras", 4, 4),
        "LiDAR frame at the sweep's time to camera frame (x right, y down, z forward) at the image's time",
        "m",
    ),
)

POINTS = table(
    scalar("n_points", pa.int64(), "points in the sweep"),
    array("xyz_m", "<f4", ("n_points", 3), "points in the LiDAR frame, order of the file", "m"),
    array("intensity", "<f4", ("n_points",), "return strength as the data set stores it (nuScenes 0..255)"),
)

PROJECT = table(
    array("point", "<i4", ("n_pairs",), "index of the point; pairs are sorted by view, then point"),
    array("view", "|u1", ("n_pairs",), "index of the camera in `index.camera`"),
    array("u_px", "<f4", ("n_pairs",), "column coordinate, not rounded", "px"),
    array("v_px", "<f4", ("n_pairs",), "row coordinate, not rounded", "px"),
    array("row_px", "<u2", ("n_pairs",), "pixel row: v rounded half to even in float64", "px"),
    array("col_px", "<u2", ("n_pairs",), "pixel column: u rounded half to even in float64", "px"),
    array("depth_m", "<f4", ("n_pairs",), "distance along the optical axis", "m"),
    array("occluded", "|b1", ("n_pairs",), "a nearer point lies in the same image cell"),
)

TEXT = pa.schema(
    [
        scalar("prompt_id", pa.int32(), "position of the prompt in the class dictionary"),
        scalar("prompt", pa.string(), "the prompt"),
        array("vector", "<f4", ("n_dims",), "unit text vector: mean over templates of unit vectors, normalised again"),
    ]
)

ENCODE = table(
    tensors("encoding", "the teacher's vocabulary-free half of each view; names are `<camera>/<part>`"),
)

SEGMENT = table(
    array("height_px", "<i4", ("n_views",), "height of the label maps", "px"),
    array("width_px", "<i4", ("n_views",), "width of the label maps", "px"),
    array("run_value", "<u2", ("n_runs",), "label maps as run lengths, row by row, views one after the other: values"),
    array("run_length", "<u4", ("n_runs",), "label maps as run lengths: lengths", "px"),
    array("runs_in_view", "<i4", ("n_views",), "how many runs each view has"),
    array("segments_in_view", "<i4", ("n_views",), "how many segments each view has; they are numbered from 1"),
    array("prompt_id", "<i4", ("n_segments",), "prompt that names each segment, views one after the other"),
    array("score", "<f2", ("n_segments",), "how sure the teacher is of the name, 0..1"),
    array("area_px", "<i4", ("n_segments",), "pixels of each segment", "px"),
    array("vector", "<f2", ("n_segments", "n_dims"), "unit vectors of the segments in the text space"),
)

GROUP = table(
    array("superpoint_view", "|u1", ("n_superpoints",), "view of each superpoint, ascending"),
    array("superpoint_segment", "<u2", ("n_superpoints",), "segment number in that view, ascending"),
    array("superpoint_prompt", "<i4", ("n_superpoints",), "prompt that names the segment"),
    array("superpoint_fine", "|u1", ("n_superpoints",), "fine class of that prompt"),
    array("superpoint_score", "<f2", ("n_superpoints",), "the teacher's score of the segment"),
    array("pair", "<i4", ("n_pairs",), "index into the frame's `project` pairs, ascending"),
    array("pair_superpoint", "<i4", ("n_pairs",), "superpoint of that pair"),
    array("point_superpoint", "<i4", ("n_points",), "superpoint that gives the point its label; -1: none"),
    array("label", "|u1", ("n_points",), "pseudo-label: class of the dictionary, 0 none"),
    array("confidence", "|u1", ("n_points",), "confidence of the pseudo-label in 1/255", "1/255"),
)

PAIRS = table(
    array("point", "<i4", ("n_pairs",), "index of the point"),
    array("superpoint", "<i4", ("n_pairs",), "superpoint it belongs to in one view"),
    array("row_px", "<u2", ("n_pairs",), "pixel row in that view", "px"),
    array("col_px", "<u2", ("n_pairs",), "pixel column in that view", "px"),
    array("superpoint_view", "|u1", ("n_superpoints",), "view of each superpoint, ascending"),
    array("superpoint_prompt", "<i4", ("n_superpoints",), "prompt that names the superpoint"),
    array("vector", "<f2", ("n_superpoints", "n_dims"), "unit vector of its segment in the text space"),
    array("height_px", "<i4", ("n_views",), "image heights", "px"),
    array("width_px", "<i4", ("n_views",), "image widths", "px"),
)

TARGET = table(
    array("label", "|u1", ("n_points",), "class to learn, 0 none"),
    array("confidence", "|u1", ("n_points",), "confidence in 1/255", "1/255"),
    array("seen", "|b1", ("n_points",), "some camera sees the point, occluded or not"),
)

LABEL = table(
    array("label", "|u1", ("n_points",), "true class of the dictionary, 0 ignored"),
    array("raw", "<u2", ("n_points",), "true label as the data set stores it (nuScenes lidarseg index)"),
)

PREDICT = table(
    array("label", "|u1", ("n_points",), "predicted class, never 0"),
    array("confidence", "|u1", ("n_points",), "softmax probability of the predicted class in 1/255", "1/255"),
    array("runner_up", "|u1", ("n_points", 2), "the second and the third likeliest class; 0: less likely than 1/510"),
    array("runner_up_confidence", "|u1", ("n_points", 2), "their probabilities", "1/255"),
)

SIMILARITY = table(
    array("cosine", "<f2", ("n_points",), "cosine of the network's feature at the point with the vector of a phrase"),
    array("margin", "<f2", ("n_points",), "that cosine less the largest one with any other prompt of the dictionary"),
)

VOTE = table(
    array("label", "|u1", ("n_points",), "pseudo-label after the vote of the sweeps before and after, 0 none"),
    array("confidence", "|u1", ("n_points",), "share of the votes, lower where there are few", "1/255"),
    array("changed", "|b1", ("n_points",), "the label is not the one it was before, or there was none"),
)

CORRECT = table(
    array("label", "|u1", ("n_points",), "pseudo-label after flat interaction, 0 none"),
    array("score", "|u1", ("n_points",), "share of the evidence at the point that speaks for the label", "1/255"),
    array("changed", "|b1", ("n_points",), "the label is not the one it was before, or there was none"),
    scalar("note", pa.string(), "which step was left out, and why; null if none was"),
)

TABLES: dict[str, pa.Schema] = {
    "index": INDEX,
    "points": POINTS,
    "project": PROJECT,
    "text": TEXT,
    "encode": ENCODE,
    "segment": SEGMENT,
    "group": GROUP,
    "pairs": PAIRS,
    "target": TARGET,
    "label": LABEL,
    "predict": PREDICT,
    "similarity": SIMILARITY,
    "vote": VOTE,
    "correct": CORRECT,
}


def signature(schema: pa.Schema) -> list[list[str]]:
    """Return name, type, element type and shape of every column: the part of a schema that enters an identity.

    Units and descriptions do not, so rewording one rebuilds nothing.
    """
    rows = []
    for column in schema:
        meaning = metadata(column)
        rows.append([column.name, str(column.type), meaning.get("dtype", ""), meaning.get("shape", "")])
    return rows


def metadata(column: pa.Field) -> dict[str, str]:
    """Return the metadata of a column as text."""
    return {key.decode(): text.decode() for key, text in (column.metadata or {}).items()}


def markdown() -> str:
    """Return the tables as Markdown: the body of docs/data.md."""
    parts = []
    for name, schema in TABLES.items():
        parts += [f"## `{name}`", "", "| column | type | shape | unit | meaning |", "|---|---|---|---|---|"]
        for column in schema:
            meaning: dict[str, Any] = metadata(column)
            kind = meaning.get("dtype", "named arrays" if column.type == TENSORS else str(column.type))
            shape = f"({meaning['shape']})" if "shape" in meaning else ""
            parts.append(f"| {column.name} | {kind} | {shape} | {meaning.get('unit', '')} | {meaning.get('doc', '')} |")
        parts.append("")
    return "\n".join(parts)
