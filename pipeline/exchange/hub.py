"""Archives of tables on a dataset repository of the Hugging Face hub: one file a recipe, by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from manifests.config import ConfigError
from manifests.endings import RunError

REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Place:
    """A dataset repository, `OWNER/NAME`, and a commit or branch of it; "" is the newest."""

    repository: str
    revision: str = ""

    def __post_init__(self) -> None:
        if not REPOSITORY.fullmatch(self.repository):
            raise ConfigError(f'"{self.repository}" is no repository of the hub; it is written OWNER/NAME')


def file_of(recipe: str) -> str:
    """Return what the archive of a recipe is called in a repository."""
    return f"{recipe}.tar"


def publish(archive: Path, recipe: str, place: Place, public: bool) -> str:
    """Put an archive into a repository, which is made, for its owner alone unless `public`, where it is not there.

    Returns the commit. Raises RunError where the hub does not take it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(place.repository, repo_type="dataset", private=not public, exist_ok=True)
        done = api.upload_file(
            path_or_fileobj=str(archive),
            path_in_repo=file_of(recipe),
            repo_id=place.repository,
            repo_type="dataset",
            revision=place.revision or None,
            commit_message=f"Tables of recipe {recipe}",
        )
    except Exception as error:  # whatever the network, the hub or the disk may raise
        raise RunError(
            f"{archive} could not be put into {place.repository} ({told(error)}); it is whole on this machine, and "
            "`hf auth login` says to the hub who you are"
        ) from None
    return str(done.oid)


def fetch(recipe: str, place: Place) -> Path:
    """Return the archive of a recipe from a repository, from the hub's cache or fetched; raises RunError."""
    from huggingface_hub import hf_hub_download

    try:
        name, revision = file_of(recipe), place.revision or None
        return Path(hf_hub_download(place.repository, name, repo_type="dataset", revision=revision))
    except Exception as error:
        raise RunError(f"{file_of(recipe)} of {place.repository} could not be fetched ({told(error)})") from None


def told(error: BaseException) -> str:
    """Return the first line of an error, with its kind."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
