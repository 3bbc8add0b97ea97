"""What city to write: one frozen dataclass, and the three sizes that have names."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from manifests.config import ConfigError
from manifests.fingerprint import digest

CODE_VERSION = 3
"""Raised when the code below makes other bytes from the same settings; scenes of another version are written again."""

_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "train_scenes": (1, 9000),
    "val_scenes": (0, 900),
    "keyframes": (1, 40),
    "sweeps_between": (0, 9),
    "image_width_px": (32, 4096),
    "image_height_px": (32, 4096),
    "jpeg_quality": (1, 95),
    "azimuths": (16, 4000),
    "max_range_m": (10.0, 200.0),
    "range_noise_m": (0.0, 1.0),
    "stray_share": (0.0, 0.5),
    "detection_limit": (0.0, 1.0),
    "clock_error_s": (0.0, 1.0),
}


FISHEYE = (0.04, -0.012, 0.003, -0.0008)
"""Coefficients of the city's fisheye, k1 to k4 as OpenCV has them."""


@dataclass(frozen=True)
class CityConfig:
    """Everything that decides the bytes of a city; same settings, same files.

    Parameters
    ----------
    seed : the city; another seed gives other streets, other things on them and another light. 0 or more.
    train_scenes, val_scenes : how many drives the lists `train.txt` and `val.txt` name, 1..9000 and 0..900. A drive's
        content depends on its own name only, so a larger city keeps the drives of a smaller one.
    keyframes : frames of each drive, half a second apart, 1..40.
    sweeps_between : sweeps between a key frame and the next, 0..9, evenly apart; nine make 20 Hz. They have neither
        labels nor boxes, as in nuScenes. With any, cameras take images at 12 Hz.
    image_width_px, image_height_px : size of all six images.
    jpeg_quality : 1..95.
    shadows : cast a second ray from every lit pixel to the sun.
    azimuths : firings of the 32 beams per turn; 1085 gives 34,720 rays.
    max_range_m : farther returns are lost, 10..200.
    range_noise_m : standard deviation of measured ranges on a smooth surface; rough ones (leaves, grass) add theirs.
    stray_share : share of the points that are strays in the air, labelled noise.
    detection_limit : weakest echo that the LiDAR detects one time in two, in units of the echo of a white wall seen
        head-on at 10 m; 0 detects everything.
    clock_error_s : standard deviation of how late a camera's clock is, constant in a drive. Its images are taken that
        much after the times that the tables tell: points fall beside what moves, and beside all if the car does.
    fisheye : all cameras have the same fisheye lens (`FISHEYE`) instead of a pinhole, and the tables say so.
    version : name of the folder of tables.
    """

    seed: int = 0
    train_scenes: int = 8
    val_scenes: int = 2
    keyframes: int = 5
    sweeps_between: int = 0
    image_width_px: int = 800
    image_height_px: int = 450
    jpeg_quality: int = 90
    shadows: bool = True
    azimuths: int = 1085
    max_range_m: float = 80.0
    range_noise_m: float = 0.02
    stray_share: float = 0.0015
    detection_limit: float = 0.0001
    clock_error_s: float = 0.0
    fisheye: bool = False
    version: str = "v1.0-city"

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"city {name} is {value}; it must be between {low} and {high}")
        if not self.version or {"/", "\\"} & set(self.version) or self.version.startswith("."):
            raise ConfigError(f"city version is {self.version!r}; give the plain name of a folder, such as v1.0-city")

    @property
    def scenes(self) -> tuple[str, ...]:
        """Names of all drives: those for training, then those for validation."""
        return (*self.train, *self.val)

    @property
    def train(self) -> tuple[str, ...]:
        """Names of the drives in `train.txt`."""
        return tuple(f"city-{number:04d}" for number in range(1, self.train_scenes + 1))

    @property
    def val(self) -> tuple[str, ...]:
        """Names of the drives in `val.txt`."""
        return tuple(f"city-{number:04d}" for number in range(9001, 9001 + self.val_scenes))

    def scene_digest(self) -> str:
        """Return the identity of one drive's files: all settings but how many drives there are."""
        settings: dict[str, Any] = asdict(self)
        del settings["train_scenes"], settings["val_scenes"]
        for later in ("fisheye", "sweeps_between"):  # cities of before there were any are as they were
            if not settings[later]:
                del settings[later]
        return digest({"code": CODE_VERSION, **settings})


SIZES: dict[str, CityConfig] = {
    "tiny": CityConfig(train_scenes=2, val_scenes=1, keyframes=2, image_width_px=400, image_height_px=225),
    "demo": CityConfig(train_scenes=16, val_scenes=4, keyframes=3),
    "bench": CityConfig(train_scenes=40, val_scenes=10, keyframes=8, clock_error_s=0.01),
}
"""`tiny` for tests, `demo` for a first look on a laptop, `bench` to measure with."""


def city_config(
    size: str, seed: int = 0, image_size: str | None = None, fisheye: bool = False, sweeps_between: int = 0
) -> CityConfig:
    """Return a city of a named size, of a seed, and with images of another size, given as "800x450", if one is wanted.

    Raises ConfigError for an unknown size, or an image size that is no two numbers.
    """
    if size not in SIZES:
        raise ConfigError(f'there is no city of size "{size}"; there are {", ".join(SIZES)}')
    config = replace(SIZES[size], seed=seed, fisheye=fisheye, sweeps_between=sweeps_between)
    if image_size is None:
        return config
    numbers = re.fullmatch(r"(\d+)x(\d+)", image_size)
    if numbers is None:
        raise ConfigError(f'image size is "{image_size}"; give width and height in pixels, such as 800x450')
    return replace(config, image_width_px=int(numbers[1]), image_height_px=int(numbers[2]))
