"""What was recorded: files, calibration and poses of a frame, its points, and where cameras see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from manifests.tables.base import About, Bool, Float32, Float64, FrameRecord, Int32, Int64, UInt8, UInt16


@dataclass(frozen=True, eq=False, kw_only=True)
class Index(FrameRecord, table="index"):
    """A frame whose files were all opened: their digests and sizes, calibration and poses."""

    scene: Annotated[str, About("scene (drive) the frame belongs to")]
    timestamp_us: Annotated[int, About("time of the LiDAR sweep", "us")]
    lidar_token: Annotated[str, About("the data set's own name of the sweep")]
    lidar_path: Annotated[str, About("sweep file, relative to the data root")]
    lidar_bytes: Annotated[int, About("size of the sweep file when it was checked", "byte")]
    lidar_sha256: Annotated[str, About("digest of the sweep file")]
    n_points: Annotated[int, About("points in the sweep")]
    sweep: Annotated[tuple[str, ...], About("LiDARs, in the order that the sweep joins them", shape=("n_lidars",))]
    sweep_path: Annotated[tuple[str, ...], About("their files, relative to the data root", shape=("n_lidars",))]
    sweep_sha256: Annotated[tuple[str, ...], About("digests of these", shape=("n_lidars",))]
    sweep_points: Annotated[Int64, About("how many of the points are of each LiDAR", shape=("n_lidars",))]
    lidar_from_sweep: Annotated[
        Float64, About("poses of the LiDARs in the frame of the sweep", "m", shape=("n_lidars", 4, 4))
    ]
    label_path: Annotated[
        str | None, About("file of true point labels, relative to the data root; null without labels")
    ]
    label_sha256: Annotated[str | None, About("digest of that file; null where it is not on disk")]
    ego_from_lidar: Annotated[Float64, About("pose of the LiDAR on the vehicle", "m", shape=(4, 4))]
    world_from_lidar: Annotated[
        Float64, About("pose of the LiDAR in the world at the time of the sweep", "m", shape=(4, 4))
    ]
    camera: Annotated[
        tuple[str, ...], About("camera names, in the order that all tables count views in", shape=("n_cameras",))
    ]
    camera_token: Annotated[tuple[str, ...], About("the data set's own name of each image", shape=("n_cameras",))]
    image_path: Annotated[tuple[str, ...], About("image files, relative to the data root", shape=("n_cameras",))]
    image_bytes: Annotated[
        Int64, About("sizes of the image files when they were checked", "byte", shape=("n_cameras",))
    ]
    image_sha256: Annotated[tuple[str, ...], About("digests of the image files", shape=("n_cameras",))]
    image_timestamp_us: Annotated[Int64, About("times of the images", "us", shape=("n_cameras",))]
    width_px: Annotated[Int32, About("image widths", "px", shape=("n_cameras",))]
    height_px: Annotated[Int32, About("image heights", "px", shape=("n_cameras",))]
    intrinsics: Annotated[Float64, About("camera matrices", "px", shape=("n_cameras", 3, 3))]
    lens: Annotated[
        tuple[str, ...], About("lens models: pinhole, brown, rational or fisheye, as OpenCV", shape=("n_cameras",))
    ]
    distortion: Annotated[
        Float64,
        About(
            "coefficients of the lenses in the order of their models, a fisheye's angle of view in rad, then zeros",
            shape=("n_cameras", 8),
        ),
    ]
    shutter: Annotated[
        tuple[str, ...],
        About(
            "order in which rows or columns were read out: down, up, right, left; empty for all at once",
            shape=("n_cameras",),
        ),
    ]
    readout_s: Annotated[Float64, About("time from the first of them to the last", "s", shape=("n_cameras",))]
    cam_motion: Annotated[
        Float64,
        About(
            "motion of cameras whose shutter rolls, in their frames: rotation vector, rad/s, and velocity, m/s",
            "rad/s, m/s",
            shape=("n_cameras", 6),
        ),
    ]
    lidar_motion: Annotated[
        Float64, About("motion of the LiDAR in its own frame, the same; NaN where unknown", "rad/s, m/s", shape=(6,))
    ]
    mask_path: Annotated[
        tuple[str, ...], About("masks of the vehicle, relative to the data root; empty without", shape=("n_cameras",))
    ]
    mask_sha256: Annotated[tuple[str, ...], About("digests of the masks; empty without", shape=("n_cameras",))]
    cam_from_lidar: Annotated[
        Float64,
        About(
            "LiDAR frame at the sweep's time to camera frame (x right, y down, z forward) at the image's time",
            "m",
            shape=("n_cameras", 4, 4),
        ),
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens(FrameRecord, of=Index):
    """The data set's own names of what was recorded."""

    lidar_token: str
    camera_token: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Points(FrameRecord, table="points"):
    """The sweep, in the order of its file."""

    n_points: Annotated[int, About("points in the sweep")]
    xyz_m: Annotated[Float32, About("points in the LiDAR frame, order of the file", "m", shape=("n_points", 3))]
    intensity: Annotated[
        Float32, About("return strength as the data set stores it (nuScenes 0..255)", shape=("n_points",))
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Coordinates(FrameRecord, of=Points):
    """Where the points of a sweep are."""

    xyz_m: Float32


@dataclass(frozen=True, eq=False, kw_only=True)
class Project(FrameRecord, table="project"):
    """Which points each camera sees, in which pixel: one pair per point and camera."""

    point: Annotated[Int32, About("index of the point; pairs are sorted by view, then point", shape=("n_pairs",))]
    view: Annotated[UInt8, About("index of the camera in `index.camera`", shape=("n_pairs",))]
    u_px: Annotated[Float32, About("column coordinate, not rounded", "px", shape=("n_pairs",))]
    v_px: Annotated[Float32, About("row coordinate, not rounded", "px", shape=("n_pairs",))]
    row_px: Annotated[UInt16, About("pixel row: v rounded half to even in float64", "px", shape=("n_pairs",))]
    col_px: Annotated[UInt16, About("pixel column: u rounded half to even in float64", "px", shape=("n_pairs",))]
    depth_m: Annotated[Float32, About("distance along the optical axis", "m", shape=("n_pairs",))]
    occluded: Annotated[Bool, About("a nearer point lies in the same image cell", shape=("n_pairs",))]


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelOfPair(FrameRecord, of=Project):
    """In which pixels points are seen."""

    view: UInt8
    row_px: UInt16
    col_px: UInt16


@dataclass(frozen=True, eq=False, kw_only=True)
class PointOfPair(FrameRecord, of=Project):
    """Which points are seen."""

    point: Int32
