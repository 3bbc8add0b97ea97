"""Labels made consistent over time: what several sweeps of one place say is put to the vote.

Points of neighbouring sweeps are brought into one frame, and voxels collect their weighted votes. Points that no camera
saw get what other sweeps saw there. What moved must not smear: a vote counts only where neither sweep looked through
the place of the other's point. The paper (arXiv 2405.15286) has no such step; consolidation over time is what later
methods add (LOSC, arXiv 2507.07605). Formulas and constants are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
import numpy.typing as npt

from superpixels.evidence import Counted, gains, likelihoods
from superpixels.places import RangeImage, Voxels, length_m, moved
from superpixels.reach import check_reach, window_of
from superpixels.returns import is_return
from superpixels.tracks import Things, follow
from superpixels.unfit import Unfit

Floats = npt.NDArray[np.floating[Any]]

Evidence = Literal["share", "log"]

SMALL_M = (0.2, 0.2, 0.2)
"""Edges of the voxels in which two sweeps are compared."""

KEPT = 2
"""Classes beside a point's label that are told with their shares."""


@dataclass(frozen=True)
class VotingConfig:
    """How neighbouring sweeps vote; recipe section ``[vote]``.

    ``reach``
        Sweeps before and after that have a vote, as far as the scene goes; 0: only the sweep itself.
    ``reach_s``
        Seconds before and after within which they lie: where there are more than ``reach`` of them, as many, spread
        evenly over that time. 0: the next ones, however long they take. None that is farther away than
        ``reach`` may be.
    ``voxel_m``, ``voxel_height_m``
        Edges of the voxels that collect votes, on the ground and upwards. Flat ones keep a street and what stands on
        it apart.
    ``range_half_m``, ``time_half_s``
        A vote counts half if the point was that far from its sensor, or that long ago or ahead.
    ``disputed``
        Weight of a point that two cameras name differently, 0..1.
    ``names``
        Classes among which a point divides its vote, 1 to 3, by how likely they are in its pixel: pseudo-labels of
        teachers that tell, with scores of pixels. Predictions have three always.
    ``evidence``
        What a point gives a class that it names: "share", its weight, and classes are compared by their share of all
        votes; or "log", how many times likelier it is than a class that the point does not name, in logarithms:
        opinions are multiplied, and confidence counts each sweep once in a voxel, however many of its points lie there.
    ``belief``
        The three likeliest classes of a point are kept with their shares, in table ``belief``.
    ``follow``
        Things that move (table ``motion``) are followed from sweep to sweep, and vote on themselves alone, wherever
        they are by then; those that are not met again have no vote on what stands. Otherwise what a sweep looks through
        has left, and has no vote.
    ``own``
        How much more what a point says itself counts than one vote of its surroundings.
    ``vehicle_m``
        Points of other sweeps that are nearer to their LiDAR than this, seen from above, have no vote: the vehicle
        itself, which is somewhere else by now. 0: all have.
    ``azimuth_deg``, ``elevation_deg``, ``through_m``
        A sweep looks through a place if all its returns in that direction, within a cell of this size, are farther away
        by ``through_m`` and 5 % of the distance.
    ``prior``
        Evidence that nothing is known: confidence is winner / (all votes + prior); in logarithms it draws the mean of
        all opinions towards none.
    """

    reach: int = 8
    reach_s: float = 0.0
    voxel_m: float = 0.6
    voxel_height_m: float = 0.3
    range_half_m: float = 30.0
    time_half_s: float = 8.0
    disputed: float = 0.5
    own: float = 1.0
    vehicle_m: float = 0.0
    azimuth_deg: float = 1.0
    elevation_deg: float = 1.5
    through_m: float = 0.5
    prior: float = 0.5
    names: int = 1
    belief: bool = False
    evidence: Evidence = "share"
    follow: bool = False

    def __post_init__(self) -> None:
        if self.evidence not in get_args(Evidence):
            raise ValueError(f"evidence is {self.evidence!r}; expected one of {', '.join(get_args(Evidence))}")
        if not 1 <= self.names <= 3:
            raise ValueError(f"names is {self.names}; expected 1 to 3 classes a point")
        check_reach(self.reach)
        lengths = ("voxel_m", "voxel_height_m", "range_half_m", "time_half_s", "azimuth_deg", "elevation_deg")
        for name in lengths:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("own", "through_m", "prior", "reach_s", "vehicle_m"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.disputed <= 1:
            raise ValueError(f"disputed is {self.disputed}; expected 0..1")

    @property
    def window(self) -> int:
        """Sweeps before and after among which those are that have a vote."""
        return window_of(self)

    @property
    def edges_m(self) -> tuple[float, float, float]:
        """Edges of a voxel along x, y and z."""
        return self.voxel_m, self.voxel_m, self.voxel_height_m


class Taken(Protocol):
    """When and where a sweep was taken: a frame."""

    @property
    def timestamp_us(self) -> int:
        """Time of the sweep."""

    @property
    def world_from_lidar(self) -> Floats:
        """Pose of the LiDAR in the world at that time, (4, 4)."""


@dataclass(frozen=True, eq=False)
class Ballot:
    """What one sweep says: ``xyz_m`` (n, 3) in its own LiDAR frame, ``label`` (n,) 0 none, ``weight`` (n,) 0..1.

    Label and weight are (n, k) where a vote is divided among k names, the likeliest first. ``here_from_lidar`` (4, 4)
    leads into the frame of the sweep that is voted on, ``ago_s`` is how long before (or, if negative, after) it was
    taken. ``trust`` (n,) 0..1 is how much every point is heard, all alike where it is left out. ``thing`` (n,) numbers
    the things that move in its sweep from 1 on, 0 none (superpixels.motion); left out, nothing is followed.
    """

    xyz_m: Floats
    label: npt.NDArray[np.uint8]
    weight: Floats
    here_from_lidar: Floats
    ago_s: float = 0.0
    trust: Floats | None = None
    thing: npt.NDArray[np.uint16] | None = None

    @classmethod
    def cast(  # one line a part of what is said
        cls,
        xyz_m: Floats,
        label: npt.NDArray[np.uint8],
        weight: Floats,
        taken: Taken,
        here: Taken,
        trust: Floats | None = None,
        thing: npt.NDArray[np.uint16] | None = None,
    ) -> Self:
        """Return what the sweep that was `taken` says to the one taken `here`."""
        here_from_lidar = np.linalg.inv(here.world_from_lidar) @ taken.world_from_lidar
        ago_s = (here.timestamp_us - taken.timestamp_us) / 1e6
        return cls(xyz_m, label, weight, here_from_lidar, ago_s, trust, thing)

    def among(self, chosen: npt.NDArray[np.bool_]) -> Ballot:
        """Return the ballot of some of its points, (n,)."""
        if chosen.all():
            return self
        names = ("xyz_m", "label", "weight", "trust", "thing")
        parts = {name: part[chosen] for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **parts)

    @property
    def best(self) -> npt.NDArray[np.uint8]:
        """The likeliest label of every point, (n,)."""
        return self.label if self.label.ndim == 1 else self.label[:, 0]

    def votes(self, n_classes: int, evidence: Evidence) -> tuple[npt.NDArray[np.uint8], Floats]:
        """Return labels and what each of them gets, (n, k) both; that is 0 where there is no label.

        In logarithms one more name, class 0, gets the trust in every point that names any class.
        """
        single = self.label.ndim == 1
        label = self.label[:, None] if single else self.label
        weight = np.where(label > 0, self.weight[:, None] if single else self.weight, 0.0)
        if evidence == "log":
            label = np.concatenate([label, np.zeros((len(label), 1), np.uint8)], axis=1)
            weight = np.concatenate([gains(weight, n_classes), (weight > 0).any(axis=1, keepdims=True)], axis=1)
        return label, weight if self.trust is None else weight * self.trust[:, None]


@dataclass(frozen=True, eq=False)
class Voted:
    """Aligned with the sweep (n,): ``label`` uint8, 0 none; ``confidence`` 0..1, 0 where there is no label.

    ``changed`` says where the label is not the one it was, or there was none. ``others`` (n, 2) are the classes that
    have most votes after the label, the one with more first, the lower of equal ones, 0 where nobody votes for another
    one; ``other_confidence`` (n, 2) is their share.
    """

    label: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    changed: npt.NDArray[np.bool_]
    others: npt.NDArray[np.uint8]
    other_confidence: npt.NDArray[np.float32]

    @property
    def runner_up(self) -> npt.NDArray[np.uint8]:
        """The class with most votes after the label, (n,)."""
        return self.others[:, 0]

    @property
    def runner_up_confidence(self) -> npt.NDArray[np.float32]:
        """Its share, (n,)."""
        return self.other_confidence[:, 0]

    def spread(self, chosen: npt.NDArray[np.bool_], before: npt.NDArray[np.uint8]) -> Voted:
        """Return what it says of the chosen ones of some points (n,), and of all others that they are as before."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        whole = {name: np.zeros((len(chosen), *part.shape[1:]), part.dtype) for name, part in parts.items()}
        whole["label"] |= before
        for name, values in whole.items():
            values[chosen] = parts[name]
        return Voted(**whole)


def vote(own: Ballot, others: Sequence[Ballot], n_classes: int, config: VotingConfig | None = None) -> Voted:
    """Return the labels of the sweep ``own`` after a vote among it and other sweeps of the same place.

    Neither the order of points nor that of ``others`` matters, up to the rounding of float64 sums. Labels are
    0..``n_classes``. Pulses that came back from nothing have no vote, and keep their label. Raises ValueError for
    points that are not finite, labels out of range, or arrays that do not fit.
    """
    config = config or VotingConfig()
    for ballot in (own, *others):
        _check(ballot, n_classes)
    there = is_return(own.xyz_m)
    others = [ballot.among(is_return(ballot.xyz_m)) for ballot in others]
    if not there.all():
        return vote(own.among(there), others, n_classes, config).spread(there, own.best)
    return decided(counted(own, others, n_classes, config), own.best, config)


def counted(own: Ballot, others: Sequence[Ballot], n_classes: int, config: VotingConfig) -> Counted:
    """Return what every class gets at every point of ``own``, all of whose points are returns."""
    here = own.xyz_m.astype(np.float64)
    seen_from_here = RangeImage(here, config)
    spaces = Spaces.of(own, others) if config.follow else None
    voxels = Voxels(here, config.edges_m, None if spaces is None else spaces.here)
    log = config.evidence == "log"
    score = np.zeros((len(here), n_classes + 1))
    opinions = np.zeros_like(score) if log else None
    heard = np.empty_like(score)
    for number, ballot in enumerate((own, *others)):
        place = ballot.xyz_m.astype(np.float64)
        space = None if spaces is None else spaces.of_ballot[number]
        range_m = length_m(place)
        label, weight = ballot.votes(n_classes, config.evidence)
        weight = weight * (0.5 ** (range_m / config.range_half_m + abs(ballot.ago_s) / config.time_half_s))[:, None]
        votes = np.logical_or.reduce([column > 0 for column in weight.T])
        may_speak = None
        if ballot is not own:
            if config.vehicle_m:
                votes &= np.hypot(place[:, 0], place[:, 1]) > config.vehicle_m
            in_its_frame = moved(np.linalg.inv(ballot.here_from_lidar), here)
            may_speak = ~RangeImage(place, config).looks_through(in_its_frame)
            place = moved(ballot.here_from_lidar, place)
            stays = ~seen_from_here.looks_through(place)
            if spaces is not None and space is not None:  # what drove on is not expected where it was
                may_speak |= spaces.here > 0
                stays = (stays & (space == 0)) | (space > 0)
                place += spaces.shift_m[number]
            votes &= stays
        met = voxels.met(place[votes], None if space is None else space[votes])
        in_voxel = voxels.votes(met, label[votes], weight[votes], n_classes)
        said = [(score, in_voxel)]
        if opinions is not None:  # points of one sweep err together in one place, so that they are one opinion
            n_points = np.bincount(met[1], minlength=len(in_voxel))
            said.append((opinions, in_voxel / np.maximum(n_points, 1)[:, None]))
        for total, one in said:
            one.take(voxels.of_point, axis=0, out=heard, mode="clip")
            if may_speak is not None:
                heard *= may_speak[:, None]
            total += heard
    own_label, own_weight = own.votes(n_classes, config.evidence)
    own_weight = own_weight * config.own * 0.5 ** (length_m(here) / config.range_half_m)[:, None]
    for total in (score,) if opinions is None else (score, opinions):
        for column in range(own_label.shape[1]):
            total[np.arange(len(here)), own_label[:, column]] += own_weight[:, column]
    return Counted(score, opinions)


@dataclass(frozen=True, eq=False)
class Spaces:
    """Who votes on whom where moving things are followed: ``here`` (n,) of the present sweep, ``of_ballot`` those of
    every sweep, the present one first: 0 what stands, k what is or was thing k of the present sweep, -1 something else
    that moves. ``shift_m`` (n, 3) of every sweep leads points of such a thing from where it was to where it is.
    """

    here: npt.NDArray[np.int64]
    of_ballot: list[npt.NDArray[np.int64]]
    shift_m: list[Floats]

    @classmethod
    def of(cls, own: Ballot, others: Sequence[Ballot]) -> Spaces:
        """Return who votes on whom; a thing of the present sweep that is followed nowhere votes as if it stood."""
        thing = [one.thing for one in (own, *others) if one.thing is not None]
        if len(thing) <= len(others):
            raise ValueError("vote.follow is on, and a ballot does not say what moves")
        places = [moved(one.here_from_lidar, one.xyz_m.astype(np.float64)) for one in others]
        of_others = [
            Things.of(place, its, one.ago_s) for place, its, one in zip(places, thing[1:], others, strict=True)
        ]
        found = follow(Things.of(own.xyz_m.astype(np.float64), thing[0], 0.0), of_others)
        met = np.zeros(int(thing[0].max(initial=0)) + 1, np.bool_)
        for one in found:
            met[one.of] = True
        met[0] = False
        here = np.where(met[thing[0]], thing[0], 0).astype(np.int64)
        of_ballot, shift_m = [here], [np.zeros((len(here), 3))]
        for its, one in zip(thing[1:], found, strict=True):
            of_ballot.append(np.concatenate([[0], np.where(one.of > 0, one.of, -1)])[its])
            shift_m.append(np.concatenate([np.zeros((1, 3)), one.shift_m])[its])
        return cls(here, of_ballot, shift_m)


def decided(count: Counted, before: npt.NDArray[np.uint8], config: VotingConfig) -> Voted:
    """Return the labels of points, (n,), that were called so ``before``, from what `counted` says.

    Votes say which label a point has. How sure that is, and what it may be instead, is told by opinions where there
    are any; the label may have less of them than another class.
    """
    part, everyone = count.votes, np.arange(len(before))
    part[:, 0] = 0
    total = part.sum(axis=1)
    winner = part.argmax(axis=1)
    keeps = (before > 0) & (part[everyone, winner] <= part[everyone, before])
    label = np.where(keeps | (total == 0), before, winner).astype(np.uint8)
    named, whole = (label > 0) & (total > 0), total + config.prior
    if count.opinions is not None:
        part, whole = likelihoods(count.opinions, config.prior), np.ones(len(part))
    confidence = _share(part[everyone, label], whole, named)
    part[everyone, label] = part[:, 0] = 0
    others, shares = np.zeros((len(part), KEPT), np.uint8), np.zeros((len(part), KEPT), np.float32)
    for rank in range(min(KEPT, part.shape[1])):
        other = part.argmax(axis=1)
        shares[:, rank] = _share(part[everyone, other], whole, named)
        others[:, rank] = np.where(shares[:, rank] > 0, other, 0)
        part[everyone, other] = 0
    return Voted(label, confidence, label != before, others, shares)


def _share(part: Floats, whole: Floats, where: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return part / whole, 0 where not asked for."""
    share = np.zeros(len(part), np.float32)
    np.divide(part, whole, out=share, where=where, casting="same_kind")
    return share


def seen_twice(
    first: Ballot, second: Ballot, n_classes: int, config: VotingConfig | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many voxels have a name in both of two sweeps, and how many have the same one, by class of the first.

    Both are (classes + 1,), entry 0 is 0. Voxels are cubes of 0.2 m, named as most of their named points are, the
    lowest of several. Places that either sweep looks through do not count: what stood there has moved. Weights play no
    part. Raises ValueError like `vote`.
    """
    config = config or VotingConfig()
    for ballot in (first, second):
        _check(ballot, n_classes)
    first, second = (ballot.among(is_return(ballot.xyz_m)) for ballot in (first, second))
    here, there = first.xyz_m.astype(np.float64), second.xyz_m.astype(np.float64)
    second_here = moved(second.here_from_lidar, there)
    first_there = moved(np.linalg.inv(second.here_from_lidar), here)
    of_first = (first.best > 0) & ~RangeImage(there, config).looks_through(first_there)
    of_second = (second.best > 0) & ~RangeImage(here, config).looks_through(second_here)
    voxels = Voxels(here[of_first], SMALL_M)
    votes = [
        voxels.votes(voxels.met(place[chosen]), best[chosen, None], np.ones((int(chosen.sum()), 1)), n_classes)
        for best, place, chosen in ((first.best, here, of_first), (second.best, second_here, of_second))
    ]
    both = (votes[0].sum(axis=1) > 0) & (votes[1].sum(axis=1) > 0)
    names = [one[both].argmax(axis=1) for one in votes]
    met, same = (np.bincount(some, minlength=n_classes + 1) for some in (names[0], names[0][names[0] == names[1]]))
    return met, same


def named_at(
    first: Ballot, second: Ballot, n_classes: int, config: VotingConfig | None = None
) -> npt.NDArray[np.uint8]:
    """Return what the second sweep calls the places of the first one's points, (n,); 0 where it says nothing of them.

    That is what most of its named points within the same cube of 0.2 m are called, the lowest of several. Of places
    that either sweep looks through, and of pulses that came back from nothing, it says nothing. Weights play no part.
    Raises ValueError like `vote`.
    """
    config = config or VotingConfig()
    for ballot in (first, second):
        _check(ballot, n_classes)
    second = second.among(is_return(second.xyz_m))
    here, there = first.xyz_m.astype(np.float64), second.xyz_m.astype(np.float64)
    second_here = moved(second.here_from_lidar, there)
    first_there = moved(np.linalg.inv(second.here_from_lidar), here)
    real = is_return(first.xyz_m)
    stands = real & ~RangeImage(there, config).looks_through(first_there)
    heard = (second.best > 0) & ~RangeImage(here[real], config).looks_through(second_here)
    voxels = Voxels(here[stands], SMALL_M)
    met = voxels.met(second_here[heard])
    votes = voxels.votes(met, second.best[heard, None], np.ones((int(heard.sum()), 1)), n_classes)
    name = np.where(votes.sum(axis=1) > 0, votes.argmax(axis=1), 0)
    found = np.zeros(len(here), np.uint8)
    found[stands] = name[voxels.of_point]
    return found


def _check(ballot: Ballot, n_classes: int) -> None:
    """Raise ValueError unless a ballot is whole."""
    n = len(ballot.xyz_m)
    shapes = ballot.xyz_m.shape, ballot.label.shape, ballot.weight.shape, np.shape(ballot.here_from_lidar)
    names = ballot.label.shape[1:]
    if shapes != ((n, 3), (n, *names), (n, *names), (4, 4)) or len(names) > 1 or 0 in names:
        raise ValueError(f"a ballot has shapes {shapes}; expected (n, 3), (n,) or (n, k) twice, and (4, 4)")
    if ballot.thing is not None and ballot.thing.shape != (n,):
        raise ValueError(f"a ballot of {n} points says of {ballot.thing.shape} which thing they are of")
    if not (np.isfinite(ballot.xyz_m).all() and np.isfinite(ballot.weight).all()):
        raise Unfit("a ballot has points or weights that are not finite; a sweep is cleaned when it is read")
    if not np.isfinite(ballot.here_from_lidar).all():
        raise Unfit(
            "the data set has no pose of the vehicle, so sweeps cannot be put to the vote; choose [target] labels and "
            "[evaluate] refine without it"
        )
    if n and int(ballot.label.max()) > n_classes:
        raise ValueError(f"a ballot has label {ballot.label.max()}; expected 0..{n_classes}")
