"""`make bench`, second half: the network. Both sparse engines, and our training step beside its bare passes.

The ways take turns on the same simulated sweeps, after one turn that does not count; least and median of the repeats
are shown, in seconds of CPU time and of wall time. `--gpu` asks for step time and memory of a training step on a GPU
instead, beside one core of the same machine.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from manifests.config import ConfigError, parse_section
from manifests.sections.network import NetworkConfig, VoxelConfig
from manifests.sections.training import DistillConfig, Precision
from trainer.data.batches import TargetBatch
from trainer.data.voxels import voxelise
from trainer.loop.device import deterministic
from trainer.loop.learner import Learner
from trainer.loop.ranks import ALONE
from trainer.loop.train import agree
from trainer.network.minkunet import ARCHITECTURES, build_network
from trainer.network.sparse import ENGINES, Engine, open_engine
from trainer.objectives.losses import segmentation_loss
from trainer.objectives.objective import Objective

N_CLASSES = 17
GPU_FRAMES = 16
NOT_SLOWER = 1.0  # torch engine against MinkowskiEngine
OVERHEAD = 1.1  # training step against its bare passes
TOLERANCE = 1e-3


def main(
    frames: Annotated[int, typer.Option(min=1, help="Sweeps in the batch.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="How often every way is timed.")] = 5,
    network: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "minkunet34c",
    gpu: Annotated[bool, typer.Option("--gpu", help="Time and memory of a training step on a GPU.")] = False,
    size_m: Annotated[float, typer.Option(help="Edge of a voxel on a GPU.")] = VoxelConfig.size_m,
) -> None:
    """Time the sparse engines against each other, and a step of training against its bare passes."""
    try:
        if gpu:
            on_gpu(network, repeats, size_m)
        else:
            on_cpu(network, frames, repeats)
    except (ConfigError, RuntimeError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def on_cpu(network: str, n_frames: int, repeats: int) -> None:
    """Print a line per way and the goals, measured in this process."""
    batch = simulated_batch(n_frames)
    engines = {name: open_engine(name) for name in ENGINES}
    learners = {name: learner(network, engine, torch.device("cpu")) for name, engine in engines.items()}
    threads = torch.get_num_threads()
    print(f"{network}, {n_frames} simulated sweeps, {len(batch.cells)} voxels, {threads} threads, {repeats} repeats")
    check_equal(network, batch, engines)
    ways: dict[str, Callable[[], object]] = {}
    for name, one in learners.items():
        ways[f"forward, {name}"] = partial(forward, one, batch)
        ways[f"forward + backward, {name}"] = partial(bare, one, batch)
    ways["training step, torch"] = partial(step, learners["torch"], batch)
    with deterministic(threads == 1, torch.device("cpu"), engines["minkowski"]):
        found = measure(ways, repeats)
    print(f"{'':32}{'CPU s':>16}{'wall s':>16}   least / median")
    for name, (cpu_s, wall_s) in found.items():
        print(f"{name:32}{show(cpu_s):>16}{show(wall_s):>16}")
    for job in ("forward", "forward + backward"):
        share = min(found[f"{job}, torch"][0]) / min(found[f"{job}, minkowski"][0])
        say(f"{job}: torch engine takes {share:.2f} of MinkowskiEngine's CPU time", share, NOT_SLOWER)
    share = min(found["training step, torch"][0]) / min(found["forward + backward, torch"][0])
    say(f"training step: {share:.2f} of its bare forward + backward", share, OVERHEAD)


def on_gpu(network: str, repeats: int, size_m: float) -> None:
    """Print time and memory of a training step of every engine that the GPU can run, in float32 and bfloat16.

    As deterministic as a training run. The last line is the same step on a CPU: one sweep of the batch, torch engine.
    """
    if not torch.cuda.is_available():
        raise ConfigError("--gpu: torch sees no GPU here, so there is nothing to measure")
    device = torch.device("cuda")
    batch = simulated_batch(GPU_FRAMES, size_m=size_m)
    print(
        f"{network} on {torch.cuda.get_device_name()}, {GPU_FRAMES} simulated sweeps, {len(batch.cells)} voxels of "
        f"{size_m:g} m"
    )
    tried: tuple[tuple[str, Precision], ...] = (("torch", "float32"), ("torch", "bfloat16"), ("minkowski", "float32"))
    for name, precision in tried:
        try:
            engine = open_engine(name)
        except ConfigError:
            continue
        if not engine.cuda_usable():
            continue
        one = learner(network, engine, device, precision=precision)
        torch.cuda.reset_peak_memory_stats()

        def timed(one: Learner = one) -> None:
            step(one, batch)
            torch.cuda.synchronize()

        with deterministic(True, device, engine), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of sums that torch cannot order on a GPU
            _, wall_s = measure({precision: timed}, repeats)[precision]
        print(
            f"{name}, {precision}: {show(wall_s)} s a step, {GPU_FRAMES / np.median(wall_s):.1f} frames/s, "
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most"
        )
        del one, timed
        torch.cuda.empty_cache()
    sweep = simulated_batch(1, size_m=size_m)
    one = learner(network, open_engine("torch"), torch.device("cpu"))
    _, wall_s = measure({"cpu": partial(step, one, sweep)}, 2)["cpu"]
    threads, rate = torch.get_num_threads(), 1 / np.median(wall_s)
    print(f"CPU, {threads} threads, float32: {show(wall_s)} s a sweep, {rate:.2f} frames/s")


def simulated_batch(n_frames: int, n_voxels: int | None = None, size_m: float = VoxelConfig.size_m) -> TargetBatch:
    """Return simulated sweeps with random classes, the first `n_voxels` voxels of each."""
    sweeps = [simulated_sweep(seed) for seed in range(n_frames)]
    cells, features = [], []
    for xyz_m in sweeps:
        intensity = np.random.default_rng(0).uniform(0, 100, len(xyz_m)).astype(np.float32)
        found = voxelise(xyz_m, intensity, VoxelConfig(size_m=size_m))
        cells.append(torch.from_numpy(found.coords)[:n_voxels])
        features.append(torch.from_numpy(found.features)[:n_voxels])
    counts = torch.tensor([len(one) for one in cells])
    generator = torch.Generator().manual_seed(0)
    return TargetBatch(
        frame_ids=tuple(f"simulated {number}" for number in range(n_frames)),
        voxel_frame=torch.repeat_interleave(torch.arange(n_frames), counts),
        cells=torch.cat(cells),
        features=torch.cat(features),
        labels=torch.randint(0, N_CLASSES, (int(counts.sum()),), generator=generator),
    )


def simulated_sweep(seed: int, n_azimuths: int = 1085) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what 32 beams see of a street (n, 3): flat ground, house fronts with bays, and some noise of range."""
    rng = np.random.default_rng(seed)
    azimuth = np.linspace(-np.pi, np.pi, n_azimuths, endpoint=False)[None, :]
    elevation = np.deg2rad(np.linspace(-30.7, 10.7, 32))[:, None]
    bays = 1 + 0.1 * np.sign(np.sin(azimuth * 12 + seed)) + rng.normal(0, 0.01, azimuth.shape)
    fronts_m = (9 + seed % 4) * bays / np.maximum(np.abs(np.sin(azimuth)), 0.12) / np.cos(elevation)
    ground_m = np.where(elevation < -0.01, 1.84 / np.maximum(-np.sin(elevation), 1e-3), np.inf)
    range_m = np.minimum(fronts_m, ground_m) + rng.normal(0, 0.03, fronts_m.shape)
    directions = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
        ),
        axis=-1,
    )
    return np.asarray((directions * range_m[..., None]).reshape(-1, 3), np.float32)


def network_config(network: str, engine: str = NetworkConfig.engine) -> NetworkConfig:
    """Return the network of these names; raises ConfigError for others."""
    return parse_section("network", {"name": network, "engine": engine}, NetworkConfig)


def learner(network: str, engine: Engine, device: torch.device, precision: Precision = "float32") -> Learner:
    """Return a network ready to learn classes, with the paper's settings of distillation."""
    settings = replace(DistillConfig(), precision=precision)

    def loss(output: Tensor, batch: TargetBatch, whole: Any) -> Any:
        return segmentation_loss(output, batch.labels, batch.voxel_frame, settings.lovasz, global_batch=whole)

    def no_sample(*_: object) -> Any:
        raise RuntimeError("the batch is made already")

    objective = Objective(
        task="distill",
        settings=settings,
        stages=(),
        broadcast=(),
        make_sample=no_sample,
        n_outputs=N_CLASSES,
        normalise_output=False,
        lr_trunk=settings.lr_trunk,
        lr_head=settings.lr_head,
        loss=loss,
    )
    made = Learner(objective, network_config(network, engine.name), engine, device, ALONE)
    made.start_epoch(1e-3)
    return made


def check_equal(network: str, batch: TargetBatch, engines: dict[str, Engine]) -> None:
    """Raise RuntimeError unless all engines give the same output."""
    outputs = []
    for engine in engines.values():
        generator = torch.Generator().manual_seed(0)
        one = build_network(network_config(network), 1, N_CLASSES, engine, generator=generator).eval()
        with torch.inference_mode():
            outputs.append(one(batch.coords, batch.features))
    apart = max(float((one - outputs[0]).abs().max() / outputs[0].abs().max()) for one in outputs)
    if not apart < TOLERANCE:
        raise RuntimeError(f"the engines differ by {apart:.1e} relative: nothing is timed")


def forward(one: Learner, batch: TargetBatch) -> None:
    with torch.no_grad():
        one.network(batch.coords, batch.features)


def bare(one: Learner, batch: TargetBatch) -> None:
    """Forward and backward pass of the network and nothing else."""
    one.network.zero_grad(set_to_none=True)
    output = one.network(batch.coords, batch.features)
    torch.autograd.backward(output, torch.ones_like(output))


def step(one: Learner, batch: TargetBatch) -> None:
    """Do what the loop of training does with a batch: loss, gradients, a look at the loss, a step of the optimiser."""
    whole, _ = agree(ALONE, [batch], False)
    one.backward([batch], whole)
    one.optimizer_step()


def measure(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return seconds of CPU and of wall time of every repeat of every way; they take turns."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for repeat in range(repeats + 1):
        for name, function in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            if repeat:
                found[name][0].append(time.process_time() - cpu)
                found[name][1].append(time.perf_counter() - wall)
    return {name: (cpu_s, wall_s) for name, (cpu_s, wall_s) in found.items()}


def show(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.3f} / {np.median(seconds):.3f}"


def say(text: str, share: float, goal: float) -> None:
    print(f"{'met   ' if share <= goal else 'missed'} {text} (goal: at most {goal:g})")


if __name__ == "__main__":
    typer.run(main)
