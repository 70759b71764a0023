"""Jobs as tasks of Ray, on this machine or on a cluster whose machines share a folder.

Only tasks of Ray's core are used, no actors. A job writes its results into the storage, so that the object store holds
nothing but one copy of the function with its policies, and a task that is tried again goes on from committed files.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rldistill.core.errors import ConfigError, MissingExtraError, error_text
from rldistill.core.fields import add_working_directory
from rldistill.io.execution import Execution
from rldistill.io.processes import MAX_RETRIES, WHERE, Item, Report, Result, Work, call_job, load_work, pickle_work

WAIT_S = 0.5


def run_on_ray(
    work: Work[Item, Result],
    items: Iterable[Item],
    execution: Execution,
    report: Report,
    uses_gpu: bool,
) -> Iterator[tuple[int, Result]]:
    """Run a job for each item as a task; yield the numbers of the items and their results as they finish."""
    ray = connect(execution.address)
    pickled = pickle_work(work, ray.cloudpickle.dumps)  # also classes of a script
    num_gpus = 1 if uses_gpu and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(_run).options(num_cpus=1, num_gpus=num_gpus, max_retries=MAX_RETRIES)
    shared, jobs, pending = ray.put(pickled), enumerate(items), dict[Any, int]()
    location = str(Path.cwd()), [*sys.path]
    try:
        while True:
            while len(pending) < execution.workers and (job := next(jobs, None)) is not None:
                pending[task.remote(shared, job[1], *location)] = job[0]
            if not pending:
                return
            done, _ = ray.wait([*pending], num_returns=1, timeout=WAIT_S)
            for reference in done:
                number = pending.pop(reference)
                try:
                    (kind, value), units = ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise ConfigError(
                        f"{WHERE}: Ray could not finish a task ({type(error).__name__}). What is finished is kept: "
                        "continue with --resume."
                    ) from None
                report(*units)
                if kind == "error":
                    raise value
                yield number, value
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def connect(address: str | None) -> Any:
    """Return Ray's module, connected to a cluster; without an address to one that starts here and ends with this run.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: No cluster has this address.
    """
    # Read when Ray is imported and started: no usage statistics, addresses of this machine alone, and workers with the
    # priority of any process, not with the lower one that Ray gives them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError:
        raise MissingExtraError("execution.backend: ray", "ray") from None
    if not ray.is_initialized():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        local: dict[str, Any] = {} if address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"execution.address: no Ray cluster answers at {address!r} ({error_text(error)}). Start one with "
                "`ray start --head`, set RAY_AUTH_MODE=token if it takes tokens, or leave the address out."
            ) from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray sets one of its own
    return ray


def _run(pickled: bytes, item: Any, folder: str, path: list[str]) -> tuple[tuple[str, Any], tuple[int, int]]:
    """Run one job in the folder of the run; return its result or error, and the units of work that it reported."""
    units = [0, 0]

    def report(*more: int) -> None:
        units[:] = units[0] + more[0], units[1] + more[1]

    try:
        os.chdir(folder)
    except OSError:
        problem = f"execution: {os.uname().nodename} has no folder {folder}"
        return ("error", ConfigError(f"{problem}. Start the run in a folder that all machines share.")), (0, 0)
    sys.path += [entry for entry in path if entry not in sys.path]
    add_working_directory()
    try:
        work = _loaded(pickled)
    except Exception as error:
        problem = f"execution: {os.uname().nodename} cannot load the job ({error_text(error)})"
        return ("error", ConfigError(f"{problem}. Install the same packages there.")), (0, 0)
    answer = call_job(work, item, report)
    return answer, (units[0], units[1])


_last: tuple[bytes, Any] = b"", None
"""Latest function of jobs in this process, and its pickle."""


def _loaded(pickled: bytes) -> Any:
    """Return the function of the jobs, which a process loads once for all of its tasks."""
    global _last
    if _last[0] != pickled:
        _last = pickled, load_work(pickled)
    return _last[1]
