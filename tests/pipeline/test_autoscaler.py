"""Ray's own autoscaler starts a node with a (fake) GPU for a run that finds none: what the pool asks for is seen."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD, GPU = "ray.head.default", "gpu"
NONE: tuple[str, ...] = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
NONE += (
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


def settings_of(address: str) -> dict[str, object]:
    """Settings of an autoscaler whose provider starts nodes on this machine: none with a GPU at first, one at most."""
    memory = {"object_store_memory": 80 * 2**20}
    return {
        **{name: [] for name in NONE},
        "cluster_name": "fake",
        "max_workers": 1,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 10,
        "provider": {"type": "fake_multinode", "gcs_address": address, "disable_node_updaters": True},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            GPU: {"resources": {"CPU": 1, "GPU": 1, **memory}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
    }


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head without GPUs and its autoscaler; all of their processes end with the test."""
    from ray._private.services import get_node_ip_address

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    found = f"{get_node_ip_address()}:{port}"
    (tmp_path / "autoscaler.json").write_text(json.dumps(settings_of(found)))
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}", "--num-cpus=1"),
        *("--num-gpus=0", f"--object-store-memory={80 * 2**20}", "--include-dashboard=false", "--block"),
        f"--autoscaling-config={tmp_path / 'autoscaler.json'}",
    ]
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env={**os.environ, **fake}, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while "To terminate the Ray runtime" not in (tmp_path / "head.log").read_text():
            assert head.poll() is None and time.monotonic() < until, (tmp_path / "head.log").read_text()
            time.sleep(0.5)
        yield found
    finally:
        for process in psutil.process_iter():  # nodes that the autoscaler started are in the head's session
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == head.pid:
                    process.send_signal(signal.SIGKILL)
        head.wait()


DRIVER = """
import json, sys
from manifests.recipe import load_recipe
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.tasks import Outcome, Queue, Task
from pipeline.engine.worker import Worker

class Idler(Worker):
    def run(self, task):
        import ray
        return Outcome(None, device=str(ray.get_runtime_context().get_accelerator_ids()["GPU"]))

with RayPool(load_recipe(sys.argv[1]), Idler) as pool:
    before = pool._ray.cluster_resources().get("GPU", 0)
    done = list(pool.run(Queue(Task("encode", "00", f"s{number}", "00", 1) for number in range(4))))
    after = pool._ray.cluster_resources().get("GPU", 0)
causes = [failure.cause for _, outcome in done for failure in outcome.failures]
print(json.dumps([before, after, [[task.shard, outcome.device] for task, outcome in done], causes]))
"""


def test_a_cluster_without_gpus_gets_one_from_its_autoscaler(address: str, tmp_path: Path, shared: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[data]\nroot = "{shared / "golden" / "nuscenes_tiny"}"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\n'
        f'weights = "random:0"\n[run]\nstore = "{tmp_path / "store"}"\npool = "ray"\nray_address = "{address}"\n'
        'workers = 2\ngpus_per_worker = 1\ndevice = "cpu"\n'
    )
    # a process of its own: Ray keeps for its life how a process proves who it is, as the first cluster wanted it
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    before, after, outcomes, causes = json.loads(done.stdout.splitlines()[-1])
    assert (before, after, causes) == (0, 1, [])
    assert outcomes == [[f"s{n}", "['0']"] for n in range(4)]
