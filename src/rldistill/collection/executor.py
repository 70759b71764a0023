"""Execution of the streams of a job, in this process or in several."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager

from rldistill.collection.stream import CollectJob, Stream
from rldistill.core.device import on_device
from rldistill.core.errors import ConfigError
from rldistill.data.manifest import BlockEntry
from rldistill.envs.rollout import inference_threads, take_turns
from rldistill.io.progress import Progress


def run_streams(job: CollectJob, progress: Progress) -> list[BlockEntry]:
    """Run all streams of a job; return the entries of their blocks in the order of their keys."""
    config, entries = job.config, list[BlockEntry]()
    total = sum(config.block_lengths) * config.envs_per_stream * config.num_streams
    for entry in _in_this_process(job) if config.workers == 1 else _in_processes(job):
        entries.append(entry)
        progress.update(sum(entry.steps for entry in entries), total)
    return sorted(entries, key=lambda entry: entry.file)


def _in_this_process(job: CollectJob) -> Iterator[BlockEntry]:
    with inference_threads(1), on_device(job.device, job.teacher, job.student):
        yield from take_turns(stream.run() for stream in job.streams)


def _in_processes(job: CollectJob) -> Iterator[BlockEntry]:
    _require_picklable(job)
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with ProcessPoolExecutor(job.config.workers, mp_context=context) as pool:
        with _ignored_by_children(signal.SIGINT):  # this process receives it and stops the others
            pending = {pool.submit(_run_stream, stream) for stream in job.streams}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()  # safe, since blocks are written atomically
            raise


def _run_stream(stream: Stream) -> list[BlockEntry]:
    job = stream.job
    with inference_threads(1), on_device(job.device, job.teacher, job.student):
        return [entry for entry in stream.run() if entry is not None]


@contextmanager
def _ignored_by_children(stop: signal.Signals) -> Iterator[None]:
    """Let processes that start within the block ignore `stop`."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield
        return
    before = signal.signal(stop, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(stop, before)


def _require_picklable(job: CollectJob) -> None:
    """Raise ConfigError for a policy that other processes cannot receive, such as one of a class in a function."""
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"collect.workers: a policy cannot be sent to other processes ({error}). Define it at the top level of its "
            "module, or set workers: 1."
        ) from None
