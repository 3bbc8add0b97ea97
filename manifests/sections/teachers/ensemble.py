"""Section `[teacher]` of several teachers that are asked together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manifests.config import ConfigError, changed_values
from manifests.fingerprint import Json, Settings
from manifests.ontology import Ontology
from manifests.sections.data import DataConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.sections.teachers.base import TeacherSection
from manifests.sections.teachers.onnx import OnnxConfig

MOST_MEMBERS = 16


@dataclass(frozen=True)
class MemberConfig:
    """A table `[[teacher.members]]`: its `name`, and `[teacher.members.onnx]` or `[teacher.members.artifacts]`.

    `weight` is what it weighs in the mean, `class_weights` what it weighs besides where it speaks of some classes of
    the dictionary: pairs such as ["car", 0.5].
    """

    name: str = ""
    weight: float = 1.0
    class_weights: tuple[tuple[str, float], ...] = ()
    onnx: OnnxConfig | None = None
    artifacts: ArtifactsConfig | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f'a member has name "{self.name}"; give it one of letters, digits and _')
        if (self.onnx is None) == (self.artifacts is None):
            raise ValueError(
                f"member {self.name} needs one table, [teacher.members.onnx] or [teacher.members.artifacts]"
            )
        files = [self.onnx.pinned, self.onnx.pinned_text] if self.onnx is not None else []
        if unpinned := [one.key for one in files if one is not None and one.source and not one.sha256]:
            raise ValueError(f"member {self.name} lacks {unpinned[0]}_sha256; pin the file: sha256sum says its digest")
        if not self.weight > 0 or any(not factor >= 0 for _, factor in self.class_weights):
            raise ValueError(f"member {self.name}: weight is above 0, and those of classes are 0 or more")

    @property
    def config(self) -> OnnxConfig | ArtifactsConfig:
        """The member's own settings."""
        config = self.onnx or self.artifacts
        assert config is not None, "checked when it was made"
        return config


@dataclass(frozen=True)
class EnsembleConfig(TeacherSection):
    """Section `[teacher]` with `name = "ensemble"`: several teachers asked of every image, and their mean.

    `members` are tables of their own, `[[teacher.members]]`, two or more: networks as for teacher "onnx", and finished
    maps as for "artifacts" (once at the most). `mean` says how the probabilities of a pixel are averaged over members
    that are weighed: "arithmetic", or "geometric", by which a class needs the consent of all. Vectors of prompts are
    those of the first network that has any that mean something, else of the first network.
    """

    scores_pixels = True

    name: str = "ensemble"
    members: tuple[MemberConfig, ...] = ()
    mean: Literal["arithmetic", "geometric"] = "arithmetic"

    def __post_init__(self) -> None:
        if self.name != "ensemble":
            raise ValueError(f'name is "{self.name}"; these are the settings of "ensemble"')
        names = [one.name for one in self.members]
        if len(names) > MOST_MEMBERS or len(set(names)) < len(names):
            raise ValueError(f"members are {', '.join(names)}; give each a name of its own, {MOST_MEMBERS} at most")
        if self.members and (len(names) < 2 or sum(one.artifacts is not None for one in self.members) > 1):
            raise ValueError(
                "members are two or more, of which one at the most has finished maps (artifacts) and the others are "
                "networks (onnx)"
            )
        if self.mean not in ("arithmetic", "geometric"):
            raise ValueError(f'mean is "{self.mean}"; choose "arithmetic" or "geometric"')

    @property
    def speaker(self) -> OnnxConfig:
        """The member whose vectors prompts have; raises ConfigError where there are no members."""
        networks = [one.onnx for one in self.members if one.onnx is not None]
        if not networks:
            raise ConfigError(
                "teacher.members is empty; name two teachers or more, each as a table [[teacher.members]]"
            )
        return next((one for one in networks if one.text_means), networks[0])

    @property
    def templates(self) -> str:
        """The sentences that prompts are put into: those of the member whose vectors they have."""
        return self.speaker.templates if self.members else "single"

    @property
    def text_means(self) -> bool:
        """Whether vectors of words that are alike are alike."""
        return self.speaker.text_means

    @property
    def reads_files(self) -> bool:
        """Whether a member's maps are files."""
        return any(one.artifacts is not None for one in self.members)

    def check_templates(self, templates: str) -> None:
        """Raise ValueError for sentences that nothing reads."""
        self.speaker.check_templates(templates)

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text", "encode" or "segment", member by member.

        `supervised` where labels of driving scenes taught any of the networks. Raises ConfigError without members.
        """
        if stage == "text":
            return {"name": self.name, "speaker": dict(self.speaker.settings(stage))}
        asked = self.networks if stage == "encode" else self.members
        found = {one.name: dict(one.config.settings(stage)) for one in asked}
        taught = any(one.get("supervised") for one in found.values())
        content: dict[str, Json] = {"name": self.name, "members": found, **({"supervised": True} if taught else {})}
        if stage == "segment":
            content["order"] = [one.name for one in self.members]
            content["weights"] = {
                one.name: {
                    key: value for key, value in changed_values(one).items() if key in ("weight", "class_weights")
                }
                for one in self.members
            }
            content |= {key: value for key, value in self.counted().items() if key == "mean"}
        return content

    @property
    def networks(self) -> tuple[MemberConfig, ...]:
        """The members that have an encode half; raises ConfigError where there are no members."""
        assert self.speaker
        return tuple(one for one in self.members if one.onnx is not None)

    def content(self, ontology: Ontology, data: DataConfig, stage: str) -> Settings:
        """Return what segments depend on beside tables and settings: whose words classes stand for.

        Raises ConfigError where a weight is of a class that the dictionary does not have.
        """
        if stage != "segment":
            return {}
        for one in self.members:
            for name, _ in one.class_weights:
                if name not in ontology.class_names:
                    raise ConfigError(
                        f"member {one.name} has a weight of class {name!r}, which dictionary {ontology.name} does not"
                    )
        content: dict[str, Json] = {one.name: dict(one.config.content(ontology, data, stage)) for one in self.members}
        return {"contents": content, "classes": ontology.class_of_prompt.tolist(), "names": list(ontology.class_names)}
