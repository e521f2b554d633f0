"""The grid on a cluster: Ray hands out trials to its machines, and each of them runs them as one machine does.

A Ray actor holds a pool of one process, so limits, clocks, memory and seeds are those of a run without Ray, and so are
the scores. Data sets are loaded by the machines: they must find them under the same names or paths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from graphlossy.outliers.runner.errors import BenchmarkError
from graphlossy.outliers.runner.grid import Trial
from graphlossy.outliers.runner.observer import Observer
from graphlossy.outliers.runner.pool import LocalPool
from graphlossy.outliers.runner.trial import new_record

__all__ = ["Host", "RayPool"]


class Host:
    """What runs inside an actor: a pool of one process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._pool = LocalPool(1, settings)

    def probe(self, label: str, source: str) -> tuple[str, Any]:
        """``("facts", facts)`` or ``("refused", text)``."""
        try:
            return "facts", self._pool.probe({label: source})[label]
        except BenchmarkError as error:
            return "refused", str(error)

    def run(self, trial: Trial) -> tuple[dict[str, Any], Any]:
        """Record and scores of a trial."""
        return next(self._pool.run([trial]))


class RayPool:
    """As `LocalPool`, on the cluster that Ray knows: that of RAY_ADDRESS, or one started on this machine.

    Args:
        settings: ``threads``, ``root``, ``seed`` and ``limits`` of the run.
        jobs: number of actors; None: as many as the cluster has room for.
        gpu: whether each actor gets a GPU of its own.

    Raises:
        BenchmarkError: Ray is not installed or cannot be reached, or its machines have no room for that many actors.
    """

    def __init__(self, settings: dict[str, Any], jobs: int | None = None, gpu: bool = False) -> None:
        try:
            import ray  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise BenchmarkError("jobs='ray' needs Ray: pip install 'graphlossy[ray]'") from None
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(log_to_driver=False, include_dashboard=False)
            except (OSError, RuntimeError, ValueError) as error:
                raise BenchmarkError(f"Ray cannot be reached: {_first_line(error)}") from None
        self._needs = {"CPU": settings["threads"], "GPU": int(gpu)}
        self._idle: list[Any] = []
        self._actors: list[Any] = []
        room = self._room()
        self.jobs = jobs or room
        if not 0 < self.jobs <= room:
            self.close()
            wanted = " and ".join(f"{number} {kind}" for kind, number in self._needs.items() if number)
            raise BenchmarkError(
                f"the cluster has room for {room} actors of {wanted} each on one machine, {jobs or 'at least 1'} asked "
                "for; ask for fewer jobs or threads"
            )
        self.settings = settings
        self._actor = ray.remote(num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"])(Host)

    def probe(self, sources: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Loads each data set once and says what it is.

        Raises:
            BenchmarkError: one of them cannot be used.
        """
        found = {}
        tasks = [("probe", label, source) for label, source in sources.items()]
        for task, (kind, value) in self._run(tasks, Observer()):
            if kind != "facts":
                raise BenchmarkError(value)
            found[task[1]] = value
        return found

    def run(self, trials: Iterable[Trial], observer: Observer | None = None) -> Iterator[tuple[dict[str, Any], Any]]:
        """Record and scores of each trial, in the order in which they are done."""
        for task, (kind, value) in self._run([("run", trial) for trial in trials], observer or Observer()):
            yield value if kind == "done" else (new_record(task[1], "failed", value), None)

    def close(self) -> None:
        """Ends the actors, and Ray itself where it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._idle = [], []
        if self._started:
            self._ray.shutdown()

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, tasks: Iterable[tuple[Any, ...]], observer: Observer) -> Iterator[tuple[tuple[Any, ...], Any]]:
        waiting = deque(tasks)
        running: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
        while waiting or running:
            while waiting and (self._idle or len(self._actors) < self.jobs):
                actor, task = self._take(), waiting.popleft()
                running[getattr(actor, task[0]).remote(*task[1:])] = actor, task
                if task[0] == "run":
                    observer.news(task[1], ("started", 0, 0.0))
            (ready, *_), _ = self._ray.wait(list(running), num_returns=1)
            actor, task = running.pop(ready)
            try:
                value = self._ray.get(ready)
                self._idle.append(actor)
            except self._ray.exceptions.RayError as error:  # its machine is gone, or it could not start
                self._actors.remove(actor)
                what = task[1] if task[0] == "probe" else "its machine was lost"
                yield task, ("lost", f"{what}: {_first_line(error)}")
                # An actor that no machine has room for would be waited for without end.
                self.jobs = min(self.jobs, self._room())
                if waiting and not self._actors and not self.jobs:
                    raise BenchmarkError("no machine of the cluster is left; run the same again to go on") from None
                continue
            yield task, (value if task[0] == "probe" else ("done", value))

    def _room(self) -> int:
        """Actors that fit; each is on one machine."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = [(kind, number) for kind, number in self._needs.items() if number]
        return sum(min(int(free.get(kind, 0)) // number for kind, number in needs) for free in alive)

    def _take(self) -> Any:
        if self._idle:
            return self._idle.pop()
        actor = self._actor.remote(self.settings)
        self._actors.append(actor)
        return actor


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
