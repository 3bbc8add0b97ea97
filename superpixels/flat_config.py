"""Every constant of flat interaction, and the arrays it works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
RINGS = ("off", "contradicted", "all")
SEEDS = ("first", "content")


@dataclass(frozen=True)
class FlatInteractionConfig:
    """Every constant of the method; the defaults were chosen by measurement (docs/afi.md), `parity()` is the reference.

    Sampling: `samples` are the sizes of the levels, finest first. `seed_point` is the first sample: "first" (the first
    point of the array) or "content" (the point farthest from the centroid, whatever the order of the points). There are
    at most a twelfth as many samples as points and each level is at most a third of the one below, unless
    `repeat_samples` has points sampled again when all have been taken, as the reference does. Points within
    `origin_radius_m` of the sensor are never samples.

    Encoder: `neighbours` per sample, sorted into `directions` of a Fibonacci sphere; a direction with at most
    `min_count` neighbours does not count. Two directions are collinear if the cosine between them exceeds
    `collinear_cos`. A sample keeps `centre_weight` of its own evidence, and `maximum_weight` of the strongest among its
    neighbours.

    Decoder: `decoder_neighbours` coarse samples per point; `residual` is the weight of a point's own evidence relative
    to the mean weight of what it is handed, per level, finest first.

    `evidence` that a point gives is for the class that it is called ("label"), or "divided" among all that it may be,
    as likely as it is each of them: pseudo-labels after a vote that keeps these (`[vote] belief`).

    Gate: a label is replaced only if the winner's score exceeds that of the old label by more than `margin`, at most
    the share `max_support` of the `support_neighbours` nearest points bear the old label (1.0: no such test), at least
    the share `agreement` of the `agreement_neighbours` nearest bear the winner (0.0: no such test), and the point does
    not stand apart: the farthest of the latter is at most `max_isolation` times as far away as it is, in the median,
    for these themselves (0.0: no such test). `gated` false replaces every label.

    Gaps: a point without a label gets the winner where there is evidence; but where less than `fill_share` of a surface
    leads to it, the label of the nearest point that has one (0.0: never). It stays without one where evidence does not
    reach: unless a point that has a label lies within `fill_reach_m` (0.0: however far it is), the label has at least
    the share `fill_certainty` of the evidence handed to the point (0.0: no such test), and at least the share
    `fill_agreement` of the `fill_neighbours` nearest points that have a label bear it (0.0: no such test).

    Islands, where the gate is in force: wrong labels come in patches, which agree with themselves. Points that bear one
    label and hang together by their `island_links` nearest neighbours, 2 to `island_points` of them, take the class of
    their border, the points of other labels among the `island_shore` nearest of theirs, if these are of one class (a
    share of `island_purity` at least), lie all around (seen from the island's centre, in the plane of the border, no
    gap is wider than `island_gap_deg`), and both lie in one plane: the island's points at most `island_flatness` off
    it, the border's half as much in the root mean square, in units of the border's lesser spread. With 0 points there
    are none.

    Ego ring, where the height of the sensor is known: points within `ego_radius_m` (horizontally) are the vehicle
    itself and give no evidence. Points of the ground plane between `ring_inner_m` and `ring_outer_m` end in a ground
    class or in none; `ring` says which of them lose their label for that: "all", those whose label is "contradicted"
    because it is no ground class, or, with "off", none, and the plane is not looked for. Candidates lie less than
    `ring_clearance_m` above the ground that the height lets expect; the plane is RANSAC's: of `ring_trials`
    planes through `ring_min_samples` points, drawn with `ring_seed`, the one with most points within `ring_residual_m`.
    Where something stands on the ground, its foot lies on the plane too: points of the ring are left alone that have
    another within `standing_radius_m` (horizontally) and `standing_low_m` to `standing_high_m` above the plane (radius
    0: no such test).
    """

    samples: tuple[int, ...] = (2730, 910, 303, 101)
    seed_point: str = "content"
    repeat_samples: bool = False
    origin_radius_m: float = 0.0
    neighbours: int = 20
    directions: int = 20
    min_count: int = 0
    collinear_cos: float = 0.99
    centre_weight: float = 0.1
    maximum_weight: float = 1e-8
    decoder_neighbours: int = 6
    residual: tuple[float, ...] = (0.0, 0.3, 0.01, 0.01)
    evidence: Literal["label", "divided"] = "label"
    gated: bool = True
    margin: float = 0.5
    support_neighbours: int = 40
    max_support: float = 0.1
    agreement_neighbours: int = 5
    agreement: float = 0.6
    max_isolation: float = 1.5
    fill_share: float = 0.2
    fill_reach_m: float = 1.5
    fill_certainty: float = 0.5
    fill_neighbours: int = 10
    fill_agreement: float = 0.6
    island_points: int = 300
    island_links: int = 8
    island_shore: int = 20
    island_purity: float = 0.9
    island_gap_deg: float = 143.0
    island_flatness: float = 0.2
    ego_radius_m: float = 2.0
    ring: str = "contradicted"
    ring_inner_m: float = 2.0
    ring_outer_m: float = 5.0
    ring_clearance_m: float = 0.44
    ring_min_samples: int = 10
    ring_residual_m: float = 0.1
    ring_trials: int = 20
    ring_seed: int = 42
    standing_radius_m: float = 0.3
    standing_low_m: float = 0.25
    standing_high_m: float = 2.0

    def __post_init__(self) -> None:
        if not self.samples or min(self.samples) < 1 or list(self.samples) != sorted(self.samples, reverse=True):
            raise ValueError(f"samples is {self.samples}; give the sizes of the levels, finest first, at least 1 each")
        if len(self.residual) != len(self.samples):
            raise ValueError(
                f"residual has {len(self.residual)} values for {len(self.samples)} levels; give one a level"
            )
        if self.seed_point not in SEEDS:
            raise ValueError(f'seed_point is "{self.seed_point}"; choose "first" or "content"')
        if self.ring not in RINGS:
            raise ValueError(f'ring is "{self.ring}"; choose "off", "contradicted" or "all"')
        if self.evidence not in ("label", "divided"):
            raise ValueError(f'evidence is "{self.evidence}"; choose "label" or "divided"')
        counts = (
            *(self.neighbours, self.decoder_neighbours, self.support_neighbours, self.agreement_neighbours),
            *(self.island_links, self.island_shore, self.fill_neighbours),
        )
        if min(counts) < 1 or self.directions < 2:
            raise ValueError("every number of neighbours must be at least 1, and directions at least 2")
        least = min(self.margin, self.max_isolation, self.fill_share, self.fill_reach_m)
        if not 0 < self.collinear_cos < 1 or least < 0:
            raise ValueError(
                "0 < collinear_cos < 1, margin >= 0, max_isolation >= 0, fill_share >= 0 and fill_reach_m >= 0 are "
                "required"
            )
        shares = (self.max_support, self.agreement, self.island_purity, self.fill_certainty, self.fill_agreement)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                "max_support, agreement, island_purity, fill_certainty and fill_agreement are shares: 0 to 1"
            )
        if min(self.island_points, self.island_gap_deg, self.island_flatness) < 0:
            raise ValueError("island_points, island_gap_deg and island_flatness must be 0 or more")

    @classmethod
    def parity(cls) -> FlatInteractionConfig:
        """Return the constants of the reference implementation: same samples, same features, same labels."""
        return cls(
            samples=(1365, 455, 151, 50),
            seed_point="first",
            repeat_samples=True,
            origin_radius_m=1e-3**0.5,
            collinear_cos=0.995,
            residual=(0.01, 0.3, 0.01, 0.01),
            gated=False,
            fill_share=0.0,
            fill_reach_m=0.0,
            fill_certainty=0.0,
            fill_agreement=0.0,
            ring="all",
            standing_radius_m=0.0,
        )


DEFAULTS = FlatInteractionConfig()
