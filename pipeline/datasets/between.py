"""What nuScenes holds between key frames: sweeps at 20 Hz and images at 12 Hz, as frames of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict

from pipeline.datasets.times import nearest


class SampleRow(TypedDict):
    """A row of table `sample`, with the rows of `sample_data` by channel that the development kit adds.

    A time is in the tables' unit, and what kind of number it is they decide.
    """

    token: str
    timestamp: Any
    scene_token: str
    data: Mapping[str, str]


class SensorRow(TypedDict):
    """A row of table `sample_data`, with channel and modality that the development kit adds."""

    token: str
    sample_token: str
    timestamp: Any
    filename: str
    is_key_frame: bool
    ego_pose_token: str
    calibrated_sensor_token: str
    channel: str
    sensor_modality: str


Listed = tuple[str, Any, Mapping[str, SensorRow]]
"""A frame's name, the time of its sample in the tables' unit, and its rows of `sample_data` by channel."""

FARTHEST_S = 0.1
"""An image that was taken longer before or after a sweep than this is none of it."""


class Between:
    """The frames of scenes: key frames, and as many of the sweeps between them as are asked for."""

    def __init__(
        self, tables: Any, lidars: Sequence[str], unit_us: float, wanted: int | Literal["keyframes", "all"]
    ) -> None:
        """`tables` is a development kit over all rows that may be needed; `lidars` are the LiDARs that make a sweep."""
        self._tables, self._lidar, self._others = tables, lidars[0], tuple(lidars[1:])
        self._every = 0 if wanted == "keyframes" else 1 if wanted == "all" else wanted
        self._farthest = FARTHEST_S * 1e6 / unit_us
        self._rows: dict[str, dict[str, list[SensorRow]]] = defaultdict(lambda: defaultdict(list))
        if self._every:
            scene_of = {row["token"]: row["scene_token"] for row in tables.sample}
            for row in sorted(tables.sample_data, key=lambda row: (row["timestamp"], row["token"])):
                self._rows[scene_of[row["sample_token"]]][row["channel"]].append(row)

    def among(self, samples: Sequence[SampleRow]) -> list[Listed]:
        """Return the frames of a scene in order of time, given all of its rows of `sample` in that order.

        A key frame is called after its sample, a sweep between after its row of `sample_data`. Raises KeyError for a
        row that is not there.
        """
        found: list[tuple[Any, Listed]] = []
        for sample in samples:
            records = {channel: self._tables.get("sample_data", token) for channel, token in sample["data"].items()}
            time = records[self._lidar]["timestamp"] if self._lidar in records else sample["timestamp"]
            found.append((time, (sample["token"], sample["timestamp"], records)))
        if not self._every or not samples:
            return [one for _, one in found]
        rows = self._rows[samples[0]["scene_token"]]
        times = {channel: [row["timestamp"] for row in some] for channel, some in rows.items()}
        for row in self._sweeps(rows[self._lidar]):
            near = {
                channel: self._nearest(rows[channel], times[channel], row["timestamp"])
                for channel in rows
                if channel != self._lidar
                and (channel in self._others or rows[channel][0]["sensor_modality"] == "camera")
            }
            records = {self._lidar: row, **{channel: one for channel, one in near.items() if one is not None}}
            found.append((row["timestamp"], (row["token"], row["timestamp"], records)))
        return [one for _, one in sorted(found, key=lambda item: item[0])]

    def _sweeps(self, rows: Sequence[SensorRow]) -> Iterator[SensorRow]:
        """Yield every so-many-th of the sweeps after a key frame, up to the next one."""
        since = 0
        for row in rows:
            since = 0 if row["is_key_frame"] else since + 1
            if since and since % self._every == 0:
                yield row

    def _nearest(self, rows: Sequence[SensorRow], times: Sequence[Any], time: Any) -> SensorRow | None:
        """Return the row that is nearest to a time, the earlier of equal ones; None where that is too far."""
        near = nearest(times, time)
        return rows[near] if abs(times[near] - time) <= self._farthest else None
