"""Errors that the trainer's users can mend."""

from __future__ import annotations


class TrainerError(RuntimeError):
    """A run that cannot go on for a reason the user can mend; printed without a trace, exit status 1."""
