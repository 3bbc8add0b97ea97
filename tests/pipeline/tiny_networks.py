"""Networks of transformers with random weights, a few layers small, as folders that teachers load."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from manifests.fingerprint import sha256_file
from pipeline.teachers.loading.towers import ensure_torchvision


def save_network(name: str, folder: Path) -> dict[str, Any]:
    """Write the folder of a tiny "sam3", "mask2former", "eomt", "tipsv2" or "bert"; return what settings name it."""
    ensure_torchvision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in {"sam3": sam3, "mask2former": mask2former, "eomt": eomt, "tipsv2": tipsv2, "bert": bert}[name]():
            part.save_pretrained(folder)
    path = folder / "model.safetensors"
    return {"weights": str(path), "weights_sha256": sha256_file(path)}


def sam3() -> list[Any]:
    from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                **small,
                "model_type": "sam3_vit_model",
                "num_hidden_layers": 2,
                "image_size": 112,
                "pretrain_image_size": 56,
                "patch_size": 14,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={
            **small,
            "num_hidden_layers": 1,
            "vocab_size": 300,
            "max_position_embeddings": 12,
            "projection_dim": 32,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 2, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2, "num_upsampling_stages": 3},
    )
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    return [Sam3Model(config), Sam3ImageProcessor(size={"height": 112, "width": 112}), tokenizer]


def mask2former() -> list[Any]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    classes: dict[str, Any] = {"num_labels": 3}  # a keyword that the class's own signature does not name
    config = Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
            "window_size": 4,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        **classes,
    )
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    return [Mask2FormerForUniversalSegmentation(config), processor]


def eomt() -> list[Any]:
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

    classes: dict[str, Any] = {"num_labels": 3}
    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_blocks=1,
        num_queries=5,
        **classes,
        num_register_tokens=1,
    )
    processor = EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    return [EomtForUniversalSegmentation(config), processor]


def bert() -> list[Any]:
    from transformers import BertConfig, BertModel, BertTokenizer

    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    vocab = {word: number for number, word in enumerate([*words, *(f"##{letter}" for letter in letters)])}
    return [BertModel(config), BertTokenizer(vocab=vocab)]


def tipsv2() -> list[Any]:
    from transformers import Tipsv2Config, Tipsv2ImageProcessor, Tipsv2Model, Tipsv2Tokenizer

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Tipsv2Config(
        vision_config={**small, "patch_size": 14, "image_size": 28},
        text_config={**small, "vocab_size": 40, "intermediate_size": 32, "max_position_embeddings": 16},
    )
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    words = ["<pad>", "<unk>", *letters]
    tokenizer = Tipsv2Tokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    return [Tipsv2Model(config), Tipsv2ImageProcessor(), tokenizer]


class Segmenter(torch.nn.Module):
    """Three convolutions and an upsampling: logits of four classes, on a grid of half the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 4, 1),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = 20 * self.layers(pixels)
        return found


def segmenter(seed: int = 0) -> Segmenter:
    """The network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Segmenter().eval()


CARD = """
[network]
name = "three convolutions"
licence = "none"
trained_on = "nothing: random weights"
driving_labels = false

[input]
{input}

[output]
kind = "logits"
stride = 2
{output}

[classes]
names = ["a", "b", "c", "void"]
unused = ["void"]

[dictionaries.{dictionary}]
{words}
"""
"""The card of the network above; `input` and `output` are further lines."""


def write_card(path: Path, dictionary: str = "street", words: str = "", input: str = "", output: str = "") -> None:
    """Write the card of the network, by default with words that the dictionaries street and nuscenes have."""
    third = "van" if dictionary == "street" else "truck"
    words = words or f'a = ["car"]\nb = ["bus"]\nc = ["{third}"]'
    path.write_text(CARD.format(input=input, output=output, dictionary=dictionary, words=words))


def save_onnx(folder: Path, network: torch.nn.Module | None = None, **card: str) -> dict[str, Any]:
    """Write a network that takes images of any size as an ONNX file, and its card; return the settings that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "own.onnx"
    sizes = {2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that another exporter is newer
        torch.onnx.export(
            network or segmenter(),
            (torch.zeros(1, 3, 32, 32),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": sizes, "logits": sizes},
            dynamo=False,
        )
    write_card(folder / "own.toml", **card)
    return {"weights": str(path), "weights_sha256": sha256_file(path)}
