"""Teacher `fcclip`: FC-CLIP, whose masks are single objects where things can be counted, from its official checkpoint.

Its encode half is the network: masks of 250 queries, of which each cell keeps the strongest few, and two vectors per
query. Its segment half names the queries by a geometric mean of what the two vectors say, and gives pixels to queries
by panoptic merging. A segment's vector is CLIP's own of the pixels ("outside"), as in the AFOV paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from manifests.sections.teachers.fcclip import FcClipConfig
from pipeline.frame import Camera, FrameError
from pipeline.teachers.loading.templates import templates_of
from pipeline.teachers.loading.weights import fill, read_tensors, weights_file
from pipeline.teachers.masks import ImageSize, MaskTeacher, keep_logits, logits_kept, network_pixels, parts_of
from superpixels.mask_queries import panoptic_merge
from superpixels.segments import Segments, Split, compact

if TYPE_CHECKING:
    import torch

    from manifests.recipe import Recipe
    from pipeline.teachers.loading.towers import Towers
    from pipeline.teachers.networks.fcclip import FcClip as Network

PARTS = ("query", "masks", "cut", "inside", "outside", "void", "logit_scale")

# The names that FC-CLIP was trained with (COCO panoptic, with the synonyms of its coco_panoptic_with_prompt_eng.txt).
SEEN_NAMES = frozenset(
    "person,child,girl,boy,woman,man,people,children,girls,boys,women,men,lady,guy,ladies,guys,clothes,bicycle,bicycles,"
    "bike,bikes,car,cars,motorcycle,motorcycles,airplane,airplanes,bus,buses,train,trains,locomotive,locomotives,"
    "freight train,truck,trucks,boat,boats,traffic light,fire hydrant,stop sign,parking meter,bench,benches,bird,birds,"
    "cat,cats,kitties,kitty,dog,dogs,puppy,puppies,horse,horses,foal,sheep,cow,cows,calf,elephant,elephants,bear,bears,"
    "zebra,zebras,giraffe,giraffes,backpack,backpacks,umbrella,umbrellas,handbag,handbags,tie,suitcase,suitcases,"
    "frisbee,skis,snowboard,sports ball,kite,kites,baseball bat,baseball glove,skateboard,surfboard,tennis racket,"
    "bottle,bottles,water bottle,wine glass,wine glasses,wineglass,cup,cups,water cup,water glass,fork,forks,knife,"
    "knives,spoon,spoons,bowl,bowls,banana,bananas,apple,apples,apple fruit,sandwich,sandwiches,orange fruit,broccoli,"
    "carrot,carrots,hot dog,pizza,donut,donuts,cake,cakes,chair,chairs,couch,sofa,sofas,potted plant,potted plants,"
    "pottedplant,pottedplants,planter,planters,bed,beds,dining table,dining tables,diningtable,diningtables,plate,"
    "plates,diningtable tablecloth,toilet,tv,laptop,mouse,tv remote,remote control,keyboard,cell phone,mobile,"
    "microwave,oven,ovens,toaster,sink,sinks,refrigerator,fridge,book,books,clock,vase,vases,scissor,scissors,"
    "teddy bear,teddy bears,hair drier,toothbrush,toothbrushes,banner,banners,blanket,blankets,bridge,cardboard,"
    "counter,curtain,curtains,door,doors,wood floor,flower,flowers,fruit,fruits,gravel,house,lamp,bulb,lamps,bulbs,"
    "mirror,tennis net,pillow,pillows,platform,playingfield,tennis court,baseball field,soccer field,tennis field,"
    "railroad,river,road,roof,sand,sea,sea wave,wave,waves,shelf,snow,stairs,tent,towel,brick wall,stone wall,"
    "tile wall,wood wall,water,window blind,window,tree,trees,palm tree,bushes,fence,fences,ceiling,sky,clouds,"
    "cabinet,cabinets,table,floor,flooring,tile floor,pavement,mountain,mountains,grass,dirt,paper,food,building,"
    "buildings,rock,wall,walls,rug".split(",")
)

_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}
_LEAST_PROBABILITY = 1e-8  # added to every probability, as in the reference


def image_size(config: FcClipConfig, height_px: int, width_px: int) -> ImageSize:
    """Return how large a camera's image goes into the network."""
    if config.parity:
        return ImageSize.padded(height_px, width_px)
    return ImageSize.whole(config.short_side_px, height_px, width_px)


@dataclass(frozen=True, eq=False)
class FcClip(MaskTeacher):
    """The loaded teacher.

    `known` float32 (n, d) are the text vectors of the names that FC-CLIP was trained with, for stage "encode".

    `seen` and `thing` bool (p,) tell of each prompt whether FC-CLIP was trained with it, and whether it is countable.
    """

    config: FcClipConfig
    network: Network | None
    seen: npt.NDArray[np.bool_]
    thing: npt.NDArray[np.bool_]
    known: torch.Tensor | None

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> FcClip:
        """Return the teacher, with the network that stage "text" and "encode" need; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, FcClipConfig)
        network, towers = load_network(config, recipe.run.device) if stage != "segment" else (None, None)
        known = None
        if towers and stage == "encode":
            import torch

            known = torch.from_numpy(towers.text_vectors(sorted(SEEN_NAMES), templates_of("single")))
            known = known.to(towers.device)
        return cls(
            config=config,
            root=Path(recipe.data.root),
            templates=templates_of(recipe.template_list),
            segmentation=recipe.segment,
            seen=np.array([prompt in SEEN_NAMES for prompt in recipe.ontology.prompts], np.bool_),
            thing=recipe.ontology.thing_of_prompt,
            network=network,
            towers=towers,
            known=known,
        )

    @staticmethod
    def content(recipe: Recipe, stage: str) -> Mapping[str, Any]:
        """Return what segments depend on beside their tables and settings: which prompts are countable."""
        return {"thing_of_prompt": recipe.ontology.thing_of_prompt.tolist()} if stage == "segment" else {}

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large masks and vectors of six 16:9 images are, before compression."""
        config = recipe.teacher
        assert isinstance(config, FcClipConfig)
        queries, dims = (12, 32) if config.model == "tiny-convnext" else (250, 768)
        height, width = image_size(config, 900, 1600).padded_px
        logits = min(config.top, queries) * (height // 4) * (width // 4) * (2 if config.masks == "uint8" else 3)
        return 6 * (logits + queries * (2 * 2 * dims + 8)) / 1000

    def image_size(self, height_px: int, width_px: int) -> ImageSize:
        """Return how large a camera's image of this size goes into the network."""
        return image_size(self.config, height_px, width_px)

    @property
    def batch(self) -> int:
        """Images at once."""
        return 6 if self.device.type == "cuda" else 1

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return what `pack` takes for a batch of images.

        Most queries show no object, and their masks would crowd out the others. So the masks of a cell are ranked by
        sigmoid(m) times the probability that the query shows anything, judged by the names that FC-CLIP was trained
        with: what is kept does not depend on the class dictionary.
        """
        import torch
        from torch.nn.functional import logsigmoid, normalize

        assert self.network is not None and self.known is not None, "the teacher was loaded for another stage"
        masks, inside, outside = self.network(network_pixels(batch), bf16=self.config.precision == "bf16")
        scales = self.network.scales()
        void = scales[0] * (inside @ normalize(self.network.void_embedding.weight, dim=-1).T)[..., 0]
        anything = logsigmoid((scales[0] * (inside @ self.known.T)).logsumexp(dim=-1) - void)
        rank = logsigmoid(masks) + anything[..., None, None]
        query = rank.topk(min(self.config.top, masks.shape[1]), dim=1).indices
        lost = (masks >= 0).scatter(1, query, torch.zeros_like(query, dtype=torch.bool)).sum(dim=(2, 3))
        return {
            "query": query.to(torch.int16),
            "masks": masks.gather(1, query),
            "cut": lost.float(),
            "inside": inside,
            "outside": outside,
            "void": void,
            "logit_scale": scales.expand(len(batch), 2),
        }

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the queries of an image as they are cached; raises FrameError where they hold values not finite.

        `query` (k, h, w), uint8 if that suffices, and `masks` (k, h, w): the k foremost queries of each cell, and their
        mask logits as float16, or as uint8 with code c for (c - 128) times MASK_STEP. `cut` float32
        (q,): cells that a query's mask has lost by that. `inside` and `outside` float16 (q, d), unit vectors. `void`
        float32 (q,), the logit of "no object". `logit_scale` float32 (2,), of cosines inside and outside.
        """
        self.check_finite(camera, outputs)
        return {
            **outputs,
            "query": outputs["query"].astype(np.uint8 if len(outputs["void"]) <= 256 else np.uint16),
            "masks": keep_logits(outputs["masks"], self.config.masks),
            "inside": outputs["inside"].astype(np.float16),
            "outside": outputs["outside"].astype(np.float16),
        }

    def segment_view(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> Segments:
        """Return the segments of one view, in the order of their first query; see superpixels.mask_queries.

        Their vectors and scores are those of their queries, see `parity`; a score is the probability of the prompt.
        """
        parts = parts_of(camera, encoding, PARTS)
        outside = parts["outside"].astype(np.float32)
        if outside.shape[1] != text.shape[1] or len(text) != len(self.seen):
            raise FrameError(
                f"{camera.name}/outside has shape {outside.shape} and the prompt vectors {text.shape}; expected "
                f"{len(self.seen)} prompts, and vectors of one length"
            )
        size = self.image_size(camera.height_px, camera.width_px)
        logit = logits_kept(parts["masks"])
        masks = size.queries(camera, self.segmentation.scale, logit, parts["query"], len(outside))
        score, prompt, is_void = self.named(parts, text)
        pixels_per_cell = masks.size_px[0] * masks.size_px[1] / (logit.shape[1] * logit.shape[2])
        found = panoptic_merge(
            masks, score, prompt, ~is_void, self.thing[prompt], self.config.overlap, parts["cut"] * pixels_per_cell
        )
        n = int(found.segment.max(initial=0))
        queries = np.flatnonzero(found.segment)
        weights = np.zeros((n, len(outside)), np.float32)
        weights[found.segment[queries] - 1, queries] = found.area_px[queries]
        _, first = np.unique(found.segment[queries], return_index=True)
        if self.config.parity:
            weights = np.zeros_like(weights)
            weights[np.arange(n), queries[first]] = 1
        # Of panoptic segments each becomes one, or one per connected component.
        label_map, parent = compact(
            np.maximum(found.label_map.astype(np.int32) - 1, 0),
            keep=found.label_map > 0,
            split=_SPLITS[self.segmentation.split],
            min_area_px=max(1, self.segmentation.min_area_px),
        )
        return Segments.from_label_map(
            label_map,
            prompt[queries[first]][parent],
            score=((weights @ score) / np.maximum(weights.sum(axis=1), 1))[parent],
            vector=(weights @ outside)[parent],
        )

    def named(
        self, parts: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return of each query the probability of its best prompt, the prompt, and whether it shows no object.

        Of prompts with one vector the first is named, as rounding could tell the others apart.
        """
        inside, outside = (
            scale * (parts[part].astype(np.float64) @ text.T.astype(np.float64))
            for part, scale in zip(("inside", "outside"), parts["logit_scale"], strict=True)
        )
        void = softmax(np.concatenate([inside, parts["void"][:, None]], axis=1), axis=1)[:, -1:]
        share = np.where(self.seen, self.config.alpha, self.config.beta)
        joint = softmax((1 - share) * log_softmax(inside, axis=1) + share * log_softmax(outside, axis=1), axis=1)
        probability = np.concatenate([joint * (1 - void), void], axis=1) + _LEAST_PROBABILITY
        probability /= probability.sum(axis=1, keepdims=True)
        _, first = np.unique(text, axis=0, return_index=True)
        distinct = np.sort(first)
        prompt = distinct[probability[:, distinct].argmax(axis=1)]
        score = probability[np.arange(len(prompt)), prompt]
        return score, prompt, probability[:, -1] > score


def load_network(config: FcClipConfig, device: str) -> tuple[Network, Towers]:
    """Return the network in evaluation mode on its device, and its CLIP towers; raises ConfigError for bad weights."""
    from pipeline.teachers.loading.towers import Towers, pick_device
    from pipeline.teachers.networks.fcclip import UNUSED, build_fcclip, from_official

    target = pick_device(device)
    network, tokenizer = build_fcclip(config.model, config.pinned.seed or 0)
    if config.pinned.seed is None:
        path = weights_file(config.pinned)
        fill(
            network,
            from_official(read_tensors(path)),
            f"teacher.weights: {path} is not a checkpoint of FC-CLIP on {config.model}",
            ignored=UNUSED,
        )
    network.requires_grad_(False).eval().to(target)
    return network, Towers(network.clip, tokenizer, target)
