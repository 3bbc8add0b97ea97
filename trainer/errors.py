"""Errors that the trainer's users can mend."""

from __future__ import annotations

from manifests.endings import RunError


class TrainerError(RunError):
    """A run that cannot go on for a reason the user can mend; printed without a trace, exit code 1."""
