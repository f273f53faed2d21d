"""`Cluster`: where Ray is to run, with how much, and connecting to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from workbench.errors import DataError, WorkbenchError


@dataclass(frozen=True)
class Cluster:
    """Where to run, and with how much."""

    workers: int | tuple[int, int]
    cpus_per_worker: float
    gpus_per_worker: float
    address: str | None

    def __post_init__(self) -> None:
        least, most = self.range
        if not 1 <= least <= most:
            raise DataError(f"workers is {self.workers!r}: give 1 or more, or (least, most).")

    @property
    def range(self) -> tuple[int, int]:
        """Least and most workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, as Ray wants them."""
        return {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker}


@contextmanager
def running(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected; a cluster that was started here is stopped again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise WorkbenchError("Ray is not installed: `pip install latent-workbench[ray]`.") from error
    ours = not ray.is_initialized()
    if ours:
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if cluster.address is not None:
            how["address"] = cluster.address
        else:
            how["include_dashboard"] = False
        try:
            ray.init(**how)
        except (ConnectionError, ValueError) as error:
            raise WorkbenchError(f"No Ray cluster at {cluster.address!r}: {error}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        _refuse_too_little(ray.cluster_resources(), cluster)
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _refuse_too_little(there: Mapping[str, float], cluster: Cluster) -> None:
    """Without this Ray would wait for ever."""
    least, _ = cluster.range
    for name, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        have = there.get(name, 0.0)
        if least * each > have:
            raise WorkbenchError(
                f"{least} workers with {each:g} {name} each need {least * each:g}, but the cluster has {have:g}: ask "
                "for fewer workers, or less for each."
            )
