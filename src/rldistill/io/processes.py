"""Other processes of the package: their start, jobs for them, and their end.

On Linux they are forked from one process that has imported what this one has, but computed nothing: a fork takes
milliseconds, the imports of PyTorch and Gymnasium seconds in each new interpreter. A fork of this process itself would
not be safe, since PyTorch's threads are not in the copy.
"""

import atexit
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle

from rldistill.core.errors import USER_ERRORS, ConfigError, RLDistillError, failure, user_code

Item = TypeVar("Item")
Result = TypeVar("Result")
Report = Callable[[int, int], None]
"""Receiver of numbers of further units of work, of two kinds such as steps and labels."""
Work = Callable[[Item, Report], Result]
Worker = tuple[multiprocessing.process.BaseProcess, Connection]
CHECK_INTERVAL_S = 2.0
"""Time between two checks for workers that were stopped."""
REPORT_INTERVAL_S = 0.25
MAX_RETRIES = 3
"""Number of times that a job is run again after its worker was killed, as in Ray."""
WHERE = "execution.workers"
"""Key of the number of workers, for errors."""
UNGUARDED = "the workers import this script again. Put its calls below `if __name__ == '__main__':`, or use one worker."
KILLED = (
    "a worker was killed {} times in the same job, perhaps for want of memory. What is finished is kept: continue with "
    "--resume, or with fewer workers."
)
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
SAFE_PACKAGES = {"torch", "gymnasium", "ale_py", "Box2D", "highway_env"}
"""Packages that may be imported before a fork, since this starts no threads and uses no GPU."""
MAX_START_S = 5.0
NUM_FILES = 12
"""Number of files that can still be opened when a worker starts; its pipes need most of them."""
SERVER = "RLDISTILL_SERVER_OF_WORKERS"
"""Environment variable of the process from which workers are forked."""
if os.environ.pop(SERVER, None):
    atexit.register(os._exit, 0)  # after the last of its clients, without the seconds that PyTorch's teardown takes
_starting = threading.RLock()
"""Held while a process starts, since threads share the environment variable and the process that is forked."""
_answers: dict[str, dict[Any, Any]] = {}
"""Results of functions with a `shared_cache`, by the name of the function and its argument."""


def shared_cache(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    """Let a slow function of one hashable argument keep its results, which workers receive with their jobs."""
    results = _answers.setdefault(f"{function.__module__}.{function.__qualname__}", {})

    @wraps(function)
    def cached(argument: Item) -> Result:
        if argument not in results:
            results[argument] = function(argument)
        answer: Result = results[argument]
        return answer

    return cached


def prepare_workers() -> None:
    """Begin to start the process from which workers are forked, unless that is done; return at once."""
    if START_METHOD == "forkserver":
        modules = [name for name in sys.modules if name in SAFE_PACKAGES or name.startswith("rldistill.")]
        modules = [name for name in modules if not name.endswith("__main__")]
        # pyarrow imports pandas for the first block, if it is installed.
        multiprocessing.set_forkserver_preload([*modules, "pandas"])
        with _starting, _without_interrupts():
            os.environ[SERVER] = "1"
            try:
                multiprocessing.forkserver.ensure_running()
            finally:  # or programs that this one starts would take themselves for that process
                del os.environ[SERVER]


def _require_files(number: int) -> None:
    """Raise OSError unless so many files can be opened; the process from which workers are forked has that limit."""
    files = list[int]()
    try:
        while len(files) < number:
            files += os.pipe()
    finally:
        for file in files:
            os.close(file)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which reaches all those of a terminal; this process ends them."""
    # New processes inherit the handler, and so are safe before their first line. Only the main thread can set it.
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)


def start_worker(serve: Callable[[Connection], None], daemon: bool) -> Worker:
    """Start a process that runs `serve` with its end of a pipe; return the process and the other end."""
    _require_files(NUM_FILES)
    context = multiprocessing.get_context(START_METHOD)
    here, there = context.Pipe()
    give_up_at = time.monotonic() + MAX_START_S
    while True:
        prepare_workers()
        process = context.Process(target=_begin, args=(serve, there, dict(os.environ)), daemon=daemon)  # type: ignore[attr-defined]
        try:
            with _starting, _without_interrupts():
                process.start()
            break
        except ConnectionRefusedError:  # the process that forks was killed, and its last thread has not ended yet
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
    there.close()
    return process, here


def _begin(serve: Callable[[Connection], None], connection: Connection, variables: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if variables != os.environ:  # those of a fork are older
        os.environ.clear()
        os.environ.update(variables)
    _end_with_parent()
    serve(connection)


def _end_with_parent() -> None:
    """Let this process end when its parent does, even by SIGKILL."""

    def watch(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def has_unguarded_script() -> bool:
    """Return True if the script of this process has no `if __name__ == "__main__":`, which new processes need."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    try:
        return file is not None and "__main__" not in Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def pickle_work(work: Work[Item, Result], dumps: Callable[[Any], bytes] | None = None) -> bytes:
    """Return the function of all jobs and the known answers for `load_work`; raise ConfigError if it cannot be sent."""
    # pickle first: it keeps classes of a script by name. A teacher is often a function within a function, which it
    # refuses.
    for method in (dumps,) if dumps is not None else (pickle.dumps, cloudpickle.dumps):
        try:
            return method((work, _answers))
        except (pickle.PicklingError, AttributeError, TypeError) as error:  # such as a policy with an open file
            refusal = error
    raise ConfigError(
        f"{WHERE}: a policy cannot be sent to other processes ({refusal}). Let it hold no open files, connections, "
        "locks or generators, or use one worker."
    )


def load_work(pickled: bytes) -> Work[Any, Any]:
    """Return the function of `pickle_work`, and keep the answers."""
    work: Work[Any, Any]
    work, answers = pickle.loads(pickled)
    for name, results in answers.items():
        _answers.setdefault(name, {}).update(results)
    return work


def call_job(work: Work[Item, Result], item: Item, report: Report) -> tuple[str, Any]:
    """Return "result" and that of a job, or "error" and its exception, which any process can read.

    Tracebacks stay in their process, so an error of the user's code becomes its line here.
    """
    try:
        return "result", work(item, report)
    except USER_ERRORS as error:
        if not isinstance(error, RLDistillError | OSError | MemoryError) and (code := user_code(error)) is not None:
            return "error", RLDistillError(f"{code} failed: {failure(error)}.")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return "error", RuntimeError(failure(error))
        return "error", error


def run_in_processes(
    work: Work[Item, Result], items: Iterable[Item], workers: int, report: Report
) -> Iterator[tuple[int, Result]]:
    """Run a job for each item in as many processes; yield the numbers of the items and their results as they finish.

    The job of a worker that was killed is run again by a new one. All workers end with the iterator.
    """
    pool = _Pool(pickle_work(work), enumerate(items), report)
    try:
        while len(pool.running) < workers and pool.start():
            pass
        while pool.running:
            for connection in multiprocessing.connection.wait([*pool.running], CHECK_INTERVAL_S):
                finished = pool.receive(connection)  # type: ignore[arg-type]
                if finished is not None:
                    yield finished
            pool.warn_of_stopped()
    finally:
        pool.end()


class _Pool:
    """Running workers by the connection to each, with the number and the item of its job."""

    def __init__(self, work: bytes, items: Iterator[tuple[int, Any]], report: Report) -> None:
        self.work, self.items, self.report = work, items, report
        self.running: dict[Connection, tuple[multiprocessing.process.BaseProcess, int, Any]] = {}
        self.reported = dict[int, tuple[int, int]]()
        self.kills, self.stopped = Counter[int](), set[int]()
        self.ended: list[multiprocessing.process.BaseProcess] = []

    def start(self, job: tuple[int, Any] | None = None) -> bool:
        """Start a worker for a job, by default the next one; return False if there is none."""
        job = job or next(self.items, None)
        if job is not None:
            process, connection = start_worker(_serve, daemon=False)  # a daemon could not start processes of its own
            self.running[connection] = process, *job
        return job is not None

    def receive(self, connection: Connection) -> tuple[int, Any] | None:
        """Take a message of a worker; return the number and the result of its job if it has finished."""
        process, number, item = self.running[connection]
        try:
            kind, value = connection.recv()
            if kind == "ready":  # not before, since a large message blocks until it is read
                connection.send_bytes(self.work)
                connection.send(item)
        except (EOFError, OSError):
            self._replace(connection)
            return None
        if kind == "units":
            before = self.reported.get(number, (0, 0))
            self.reported[number] = before[0] + value[0], before[1] + value[1]
            self.report(*value)
        elif kind == "error":
            raise value
        elif kind == "result":
            job = next(self.items, None)
            if job is None:
                self._release(connection)
            else:
                self.running[connection] = process, *job
                with suppress(OSError):  # found by the next `receive`
                    connection.send(job[1])
            return number, value
        return None

    def _replace(self, connection: Connection) -> None:
        """Give the job of a killed worker to a new one; raise ConfigError if that happened too often."""
        process, number, item = self.running[connection]
        self._release(connection)
        if has_unguarded_script():
            raise ConfigError(f"{WHERE}: {UNGUARDED}")
        self.kills[number] += 1
        if self.kills[number] > MAX_RETRIES:
            raise ConfigError(f"{WHERE}: {KILLED.format(self.kills[number])}")
        warnings.warn(f"{WHERE}: worker {process.pid} was killed; a new one goes on with its job", stacklevel=4)
        before = self.reported.pop(number, (0, 0))
        self.report(-before[0], -before[1])  # the new one counts them again
        self.start((number, item))

    def _release(self, connection: Connection) -> None:
        process, _, _ = self.running.pop(connection)
        connection.close()
        process.terminate()
        self.ended.append(process)

    def warn_of_stopped(self) -> None:
        """Warn once of each worker that was stopped by a signal."""
        for process, _, _ in self.running.values():
            if process.pid and process.pid not in self.stopped and _is_stopped(process.pid):
                self.stopped.add(process.pid)
                text = f"worker {process.pid} is stopped. `kill -CONT {process.pid}` lets it go on"
                warnings.warn(f"{WHERE}: {text}", stacklevel=3)

    def end(self) -> None:
        """End all workers at once, which is safe, since files are written atomically."""
        for connection in [*self.running]:
            self._release(connection)
        for process in self.ended:  # or they would slow down what is measured next
            process.join(1)


def _serve(connection: Connection) -> None:
    """Run one job after another until the connection is closed."""
    waiting, sent_at = [0, 0], time.monotonic()

    def flush() -> None:
        nonlocal sent_at
        sent_at = time.monotonic()
        connection.send(("units", (*waiting,)))
        waiting[:] = 0, 0

    def report(*units: int) -> None:
        waiting[:] = waiting[0] + units[0], waiting[1] + units[1]
        if time.monotonic() - sent_at > REPORT_INTERVAL_S:
            flush()

    with suppress(EOFError, OSError):  # the parent needs no further job, or is gone
        connection.send(("ready", None))
        work = load_work(connection.recv_bytes())
        while True:
            answer = call_job(work, connection.recv(), report)
            flush()
            connection.send(answer)


def _is_stopped(pid: int) -> bool:
    """Return True if a process was stopped by a signal, as far as the system shows it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False
