"""Photographs of the city: hit points, lit by sun and sky, seen through haze, developed to eight bits."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from bench.city.materials import Float32, noise, surface
from bench.city.render import Hits, Moment
from bench.city.scene import Light
from bench.city.shapes import Array

UInt8 = npt.NDArray[np.uint8]

SHADE_PX, SHADE_PX_PER_M = 512, 6.0  # the map of what stands on the ground in front of a camera, 85 m wide


def photograph(
    moment: Moment,
    hits: Hits,
    rays: Float32,
    light: Light,
    footprints_m: Array,
    size_px: tuple[int, int],
    shadows: bool,
    grain: Float32,
) -> UInt8:
    """Return an image uint8 (height, width, 3) of the hits of a camera's rays, row by row.

    `rays` (n, 3) in the scene's frame; `footprints_m` (k, 4, 2) are the corners of what stands on the ground and keeps
    the sky's light from it; `size_px` is (width, height); `grain` (n,) is the sensor's noise, standard deviation 1.
    """
    length = np.sqrt(np.einsum("ij,ij->i", rays, rays))
    hit = np.flatnonzero(np.isfinite(hits.distance))
    miss = np.flatnonzero(np.isinf(hits.distance))
    view = rays / length[:, None]
    colour = np.empty((3, len(rays)), np.float32)  # a row per channel: numpy is several times faster along long rows
    colour[:, miss] = sky(view[miss].T, light)
    colour[:, hit] = lit_surfaces(
        moment, hits, hit, view[hit], hits.distance[hit] * length[hit], light, footprints_m, shadows
    )
    level = np.clip(colour * np.float32(light.exposure * (len(_DEVELOP) - 1) / BRIGHTEST), 0, len(_DEVELOP) - 1)
    image = _DEVELOP[level.astype(np.int32)] + grain * np.float32(2.0)
    width, height = size_px
    pixels = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return soften(np.ascontiguousarray(pixels.T).reshape(height, width, 3))


BRIGHTEST = 12.0  # exposed light above this is white


def _develop(exposed: Float32) -> Float32:
    """Brightness 0..255 of exposed light: a soft shoulder instead of clipping, the display curve, a little contrast."""
    tone = np.clip(1.3 * exposed * (1 + exposed / 6.0) / (1 + exposed), 0, 1) ** (1 / 2.2)
    return np.asarray(255 * (tone + 0.9 * tone * (1 - tone) * (tone - 0.5)), np.float32)


_DEVELOP = _develop(np.linspace(0, BRIGHTEST, 1 << 14, dtype=np.float32))


def lit_surfaces(
    moment: Moment,
    hits: Hits,
    hit: npt.NDArray[np.int64],
    view: Float32,
    distance_m: Float32,
    light: Light,
    footprints_m: Array,
    shadows: bool,
) -> Float32:
    """Return the linear colours (3, k) of the hits at indices `hit` (k,), seen along unit directions `view` (k, 3)."""
    normal, position = hits.normal[hit], hits.position_m[hit]
    look = surface(hits.material[hit], hits.tint[hit], position, normal, distance_m)
    facing = np.maximum(normal @ light.towards_sun.astype(np.float32), 0)
    if shadows:
        lit = np.flatnonzero(facing > 0)
        facing[lit[moment.blocked(position[lit] + 0.02 * normal[lit], light.towards_sun)]] = 0
    # more sky is seen from above than from the side, and the ground throws some light back up
    up = np.ascontiguousarray(normal[:, 2])
    dome = np.float32(0.62) + np.float32(0.38) * up
    low = np.flatnonzero((up > 0.7) & (hits.actor[hit] < 0))
    dome[low] *= 1 - np.float32(0.85) * covered(position[low, :2], footprints_m)
    bounced = np.maximum(-up, 0) * np.float32(0.1) + np.float32(0.05)
    sky_light = light.sky.astype(np.float32)
    seen = np.empty((3, len(hit)), np.float32)
    for channel in range(3):
        arriving = facing * np.float32(light.sun[channel]) + dome * (sky_light[channel] * np.float32(0.8)) + bounced
        seen[channel] = look.albedo[channel] * arriving
    glossy = np.flatnonzero(look.gloss > 0)
    toward, across = view[glossy], normal[glossy]
    cosine = np.einsum("ij,ij->i", toward, across)
    shine = look.gloss[glossy] * (0.35 + 0.65 * (1 - np.abs(cosine)) ** 3)
    mirrored = (toward - 2 * cosine[:, None] * across).T
    seen[:, glossy] = seen[:, glossy] * (1 - shine) + shine * sky(mirrored, light) * np.float32(0.8)
    haze = 1 - np.exp(np.float32(-light.haze_per_m) * distance_m)
    for channel in range(3):
        seen[channel] += haze * (sky_light[channel] * np.float32(0.95) - seen[channel])
    return seen


def covered(xy_m: Float32, footprints_m: Array) -> Float32:
    """Return 0..1, how much of the light from above is kept from places (n, 2) on the ground by what stands near."""
    from PIL import Image, ImageDraw

    if not len(xy_m) or not len(footprints_m):
        return np.zeros(len(xy_m), np.float32)
    origin = xy_m.mean(axis=0) - SHADE_PX / SHADE_PX_PER_M / 2
    picture = Image.new("L", (SHADE_PX, SHADE_PX), 0)
    draw = ImageDraw.Draw(picture)
    for corners in (footprints_m - origin) * SHADE_PX_PER_M:
        draw.polygon([tuple(corner) for corner in corners.tolist()], fill=255)
    shade = gaussian_filter(np.asarray(picture, np.float32) / 255, 0.3 * SHADE_PX_PER_M, truncate=2.0)
    column, row = np.clip((xy_m - origin) * SHADE_PX_PER_M, 0, SHADE_PX - 1).astype(np.int32).T
    return np.asarray(shade[row, column], np.float32)


def sky(view: Float32, light: Light) -> Float32:
    """Return linear colours (3, n) of the sky along unit directions (3, n), with clouds and a glow around the sun."""
    up = np.clip(view[2], 0, 1)
    blend = np.sqrt(up)
    lift = 1 / (up + np.float32(0.12))
    x, y = view[0] * lift, view[1] * lift
    drift = noise(x * np.float32(1.1), y * np.float32(1.1))
    drift += np.float32(0.5) * noise(x * np.float32(3.1) + 5, y * np.float32(3.1))
    cover = np.clip(drift * np.float32(0.5) + np.float32(light.clouds * 2 - 0.9), 0, 1) * np.minimum(up * 6, 1)
    cover *= np.float32(0.8)
    sun = np.maximum(light.towards_sun.astype(np.float32) @ view, 0)
    sun_2 = sun * sun
    glow = np.float32(0.35) * (sun_2 * sun_2 * sun_2) ** 2 + 6 * (sun > np.float32(0.9993))
    glow *= np.float32(1 - light.clouds)
    white = np.float32(1.02 - 0.15 * light.clouds)
    pale, deep = light.sky * 0.4 + 0.52, light.sky * np.array([0.55, 0.75, 1.0])
    return np.stack([
        (np.float32(pale[i]) + np.float32(deep[i] - pale[i]) * blend) * (1 - cover) + cover * white + glow
        for i in range(3)
    ])  # fmt: skip


def soften(image: UInt8) -> UInt8:
    """Return the image as a lens would draw it: each pixel takes a little of its neighbours."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.uint16)
    rows = padded[:-2] + 4 * padded[1:-1] + padded[2:]
    columns = rows[:, :-2] + 4 * rows[:, 1:-1] + rows[:, 2:]
    return np.asarray((columns + 18) // 36, np.uint8)


def jpeg(image: UInt8, quality: int) -> bytes:
    """Return the image as a JPEG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def png(image: UInt8 | npt.NDArray[np.uint16]) -> bytes:
    """Return a grey image (height, width), of 8 or 16 bits, as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()
