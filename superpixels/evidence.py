"""Evidence in logarithms: what a point gives the classes that it names, and how likely classes are from the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

UNNAMED = 0.01
"""Least likelihood that a point is of a class which it does not name: nobody is surer than 99 %; it bounds evidence."""


@dataclass(frozen=True, eq=False)
class Counted:
    """What classes get at points, (n, classes + 1): ``votes``, of all points, and ``opinions``, of all sweeps.

    Opinions are told in logarithms only: there the points of a sweep in one voxel say together what they say on
    average, and a point's own say comes on top, as it does to the votes. Column 0 is what counts for no class: in
    logarithms how much trust all that is counted has, else 0.
    """

    votes: Floats
    opinions: Floats | None


def gains(likelihood: Floats, n_classes: int) -> Floats:
    """Return the evidence that points give the classes they name, (n, k): how many times likelier each of these is than
    a class that the point does not name, in logarithms, at least 0.

    ``likelihood`` (n, k), 0..1, is 0 where a point has fewer names. What it leaves over is divided among the others,
    and is `UNNAMED` at least.
    """
    named = likelihood > 0
    rest = np.maximum(1 - likelihood.sum(axis=1), UNNAMED) / np.maximum(n_classes - named.sum(axis=1), 1)
    times = np.divide(likelihood, rest[:, None], out=np.ones_like(likelihood), where=named)
    return np.asarray(np.log(np.maximum(times, 1.0)))


def likelihoods(score: Floats, prior: float) -> Floats:
    """Return how likely every class is, (n, classes + 1), from evidence in logarithms: by its mean over all trust.

    Its sum would be the likelihood if opinions erred by themselves; those of one thing err together, and a bound on the
    sum makes equals of the classes of a dense place. Column 0 of ``score`` is that trust. ``prior`` beside it is trust
    in nothing: it draws the mean towards none, and all classes together are the less likely the less trust there is.
    """
    mass = score[:, :1]
    evidence = score[:, 1:] / np.maximum(mass + prior, 1e-9)
    raised = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    found = np.zeros_like(score)
    found[:, 1:] = raised / raised.sum(axis=1, keepdims=True) * (mass / np.maximum(mass + prior, 1e-9))
    return found
