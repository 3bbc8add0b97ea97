"""The one door to Ray: connecting to a cluster or starting a local one, and what a pool asks of it."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from manifests.config import ConfigError
from manifests.endings import RunError
from manifests.fingerprint import Settings
from manifests.recipe import Recipe

ROOT = str(Path(__file__).parent.parent)
"""Where our packages lie: the checkout, or site-packages."""
ANSWER_S = 10.0  # how long a cluster's port may take to accept a connection
JOIN_S = 45.0  # how long a cluster may take to let a driver in

# What `ray.init` would wait for, for minutes and deaf to signals, a process of its own waits for in its place. It tells
# the error alone: Ray's own lines go to stderr.
ASK = """
import logging, os, signal, sys
signal.alarm(60)  # should whoever asks be gone
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except BaseException as error:
    os.write(1, f"{type(error).__name__}: {error}".encode())
    os._exit(1)
os._exit(0)
"""


_started_in: Path | None = None
"""The working folder of the local cluster that this process has started; None where it joined one."""


SLOW_START = "timed out during startup"
"""What Ray says, in an error of no class of its own, where its processes do not answer when they are started."""


def connect(recipe: Recipe) -> Any:
    """Return the ray module, connected to the cluster at `run.ray_address` or to a local one started for this run.

    Raises RunError, within a minute, where that cannot be, and ConfigError for a store that workers would look for
    elsewhere; Ctrl-C and SIGTERM end the waiting.
    """
    global _started_in
    check_store(recipe)
    set_environment()
    import ray

    if ray.is_initialized():
        if _started_in in (None, Path.cwd()):
            return ray
        ray.shutdown()  # its workers would look for relative paths where it was started
    options: dict[str, Any] = {"address": recipe.run.ray_address}
    if recipe.run.ray_address == "local":
        give_token()
        options |= {
            "num_cpus": max(recipe.run.workers, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": 256 * 2**20,  # tasks and outcomes are small: rows go through the store
        }
    else:
        check_cluster(recipe.run.ray_address)
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": ROOT}}
    before = signal.getsignal(signal.SIGTERM)
    try:
        with modules_from_here():
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise unusable(recipe.run.ray_address, str(error) or type(error).__name__) from error
    except Exception as error:
        if SLOW_START not in str(error):
            raise
        raise RunError(
            "Ray's own processes did not answer in time when they were started: this machine is too busy, or lacks "
            "memory. Run again when it has less to do, or without Ray: --set run.pool=inline"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts one of its own there
    _started_in = Path.cwd() if recipe.run.ray_address == "local" else None
    return ray


@contextmanager
def modules_from_here() -> Iterator[None]:
    """Have processes that start meanwhile import our modules from where this one has them.

    A local cluster's workers inherit it. Told as a runtime environment, each of them would start twice: a Python that
    loads Ray to prepare the environment, and then its own.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = ROOT
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def check_store(recipe: Recipe) -> None:
    """Raise ConfigError where each worker of a cluster would look for the store in a folder of its own."""
    run = recipe.run
    if run.ray_address != "local" and "://" not in run.store and not Path(run.store).expanduser().is_absolute():
        raise ConfigError(
            f'run.store is "{run.store}", and each worker of a cluster would look for it in a folder of its own: '
            "give an absolute path that all machines see, or s3://bucket/folder"
        )


def set_environment() -> None:
    """Set what Ray reads from the environment, as far as nobody has."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # one worker per core would start at once, whatever run.workers says, and most of them for nothing
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Ray 2.60 would otherwise blank CUDA_VISIBLE_DEVICES for workers without GPUs and warn about it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # and start workers through `uv run`, in an environment of their own, where one of our ancestors is that
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def give_token() -> None:
    """Give the local cluster of this run a token of its own, in the environment of its processes alone.

    Ray 2.60 would write one to ~/.ray, which a container's user may not, and which puts every later `ray start` of that
    user into a mode that other machines do not know of.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def check_cluster(address: str) -> None:
    """Raise RunError unless a cluster at an address, `auto` included, lets this machine in."""
    from ray._private.services import canonicalize_bootstrap_address

    if address.startswith("ray://"):
        raise unusable(address, "the Ray client is not supported; start the driver on a machine of the cluster")
    try:
        found = canonicalize_bootstrap_address(address)
    except (OSError, ValueError, RuntimeError) as error:
        raise unusable(address, str(error)) from error
    if found is None:
        raise unusable(address, "no cluster runs on this machine; start one with: ray start --head --port=6379")
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise unusable(address, f"nothing answers at {found} ({error})") from error
    ask_cluster(address)


def ask_cluster(address: str) -> None:
    """Raise RunError unless a process that joins the cluster is let in before `JOIN_S` are over."""
    words = [sys.executable, "-c", ASK, address]
    paths = os.pathsep.join(filter(None, sys.path))
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": paths}, **pipes) as asking:
        try:
            told, lines = asking.communicate(timeout=JOIN_S)
        except subprocess.TimeoutExpired:
            raise unusable(
                address,
                f"it answers and lets nobody in within {JOIN_S:.0f} s: its raylet on this machine may have died (`ray "
                "stop`, then `ray start` again), or it is no Ray cluster",
            ) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(asking.pid, signal.SIGKILL)
            asking.wait()
    if asking.returncode:
        text = (told or lines).decode("utf-8", "replace")
        hint = " Give all sides the same RAY_AUTH_MODE and token: docs/cluster.md" if "auth" in text.lower() else ""
        raise unusable(address, (text.strip() or f"the process that asked ended with {asking.returncode}") + hint)


def unusable(address: str, cause: str) -> RunError:
    """Return the error for a cluster that cannot be used."""
    return RunError(f"Ray at run.ray_address = {address!r} cannot be used: {shortened(cause)}")


def shortened(text: str, most: int = 900) -> str:
    """Return a text as one line, of a long one its two ends: Ray tells the cause last."""
    line = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    return line if len(line) <= most else f"{line[: most // 3]} ... {line[-2 * most // 3 :]}"


def placed(worker: type[Any]) -> type[Any]:
    """Return the worker with a method that tells its node, and how many shards of some stages it takes at once."""

    class Placed(worker):  # type: ignore[misc]
        def where(self, stages: Sequence[str]) -> tuple[str, dict[str, int]]:
            import ray

            return str(ray.get_runtime_context().get_node_id()), {stage: self.at_once(stage) for stage in stages}

    return Placed


def named(node: Settings) -> str:
    """Return the name of a node for people, of what Ray says of it."""
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {str(node['NodeID'])[:8]} in Ray)"


def last_words() -> str:
    """Return what a worker process of this machine that has ended wrote last; empty if none has ended, or all silently.

    Ray starts such workers again and again, and tells nobody why they end.
    """
    from ray._private.worker import _global_node

    return ended_workers(Path(_global_node.get_logs_dir_path())) if _global_node is not None else ""


def ended_workers(folder: Path) -> str:
    """Return the last words of the worker that ended last, out of a folder with Ray's logs, worker-<...>-<pid>.err."""
    found = []
    for path in folder.glob("worker-*.err"):
        pid = path.stem.rpartition("-")[2]
        with suppress(OSError):
            if pid.isdigit() and path.stat().st_size and not Path("/proc", pid).exists():
                found.append((path.stat().st_mtime, path.read_text("utf-8", "replace")[-4000:]))
    return shortened(max(found)[1]) if found else ""


def node_here(ray: Any) -> str:
    """Return the node that this driver belongs to."""
    return str(ray.get_runtime_context().get_node_id())


def alive(ray: Any, node: str) -> bool:
    """Return whether Ray's processes on a node are there."""
    return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())


def cpu_share(ray: Any, n_workers: int) -> float:
    """Return what a worker takes of the CPUs in Ray's books: a whole one, unless there are fewer CPUs than workers."""
    cpus = float(ray.cluster_resources().get("CPU", 1.0))
    return min(1.0, math.floor(cpus / n_workers * 1e4) / 1e4)  # Ray counts in steps of 0.0001


def raylet_died(recipe: Recipe) -> RunError:
    """Return the error for a machine whose raylet has ended under a run."""
    again = "run again" if recipe.run.ray_address == "local" else "run again after `ray stop` and `ray start`"
    return RunError(
        "the raylet of this machine, Ray's process that starts workers, has died, for want of memory or since "
        f"somebody ended it. Finished shards are kept: {again}"
    )
