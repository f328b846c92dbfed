# SPDX-License-Identifier: Apache-2.0
"""Where jobs run: in this process, in processes on all cores, or on a Ray cluster."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from ..errors import EnvironmentUnavailableError
from .campaign import WorkerDied

__all__ = ["InProcess", "Processes", "Ray"]

INSTALL = "pip install 'sdeivirt[ray]'"
START = "`ray start --head` starts one"
CONNECT_SECONDS = 10.0


class InProcess:
    """One job after the other, here: a failure has a whole traceback, and a debugger sees it."""

    workers = 1
    ahead = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def withdraw(self, future: Future[Any]) -> bool:
        return False  # it is done

    def explain(self, error: Exception) -> Exception:
        return error

    def stop(self) -> None: ...


Task = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Processes:
    """So many processes of this machine, each fresh (spawned): nothing of the caller's threads goes with them.

    Unlike `concurrent.futures`' own pool, it can be stopped in the midst of jobs: each process has a pipe and a
    thread of its own, shares no lock with another, and ends when its pipe does, whoever dies first.
    """

    ahead = 2

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        context = multiprocessing.get_context("spawn")
        self._processes = []
        self._threads = []
        for _ in range(self.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            # It inherits this, lest Ctrl-C meet it before it can say that it does not care.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            process.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            thread = threading.Thread(target=self._hand_out, args=(ours,), daemon=True)
            thread.start()
            self._processes.append(process)
            self._threads.append(thread)

    def _hand_out(self, worker: Connection[Any, Any]) -> None:
        """One worker's thread: jobs there, results back."""
        alive = True
        with worker:
            while (task := self._tasks.get()) is not None:
                future, function, arguments = task
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    if not alive:
                        raise EOFError
                    worker.send((function, arguments))
                    error, result = worker.recv()
                except (EOFError, OSError):
                    alive = False
                    hint = "was it killed, or is memory short?"
                    error, result = WorkerDied("a worker process died before its job was done", hint), None
                except Exception as unreadable:  # an answer that cannot be unpickled
                    error, result = unreadable, None
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def withdraw(self, future: Future[Any]) -> bool:
        return future.cancel()

    def explain(self, error: Exception) -> Exception:
        return error

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.join()


def _work(pipe: Connection[Any, Any]) -> None:
    """A worker process: does what comes until nothing comes any more. Ctrl-C is for the one who started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[Exception | None, Any]
        try:
            answer = None, function(*arguments)
        except Exception as error:
            answer = error, None
        try:
            pipe.send(answer)
        except OSError:
            return


class Ray:
    """A Ray cluster: the one at `address` (by default RAY_ADDRESS), or one of so many workers that is started here.

    The package has to be installed wherever the cluster's workers run.
    Raises EnvironmentUnavailableError where Ray is not installed or the cluster cannot be reached.
    """

    ahead = 2

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise EnvironmentUnavailableError("Ray is not installed", INSTALL) from error
        self._ray = ray
        self._ours = not ray.is_initialized()
        address = address or os.environ.get("RAY_ADDRESS")
        if self._ours and address:
            _reach(address)
        if self._ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports to be sent
            here = {} if address else {"num_cpus": workers, "include_dashboard": False}
            try:
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
            except Exception as error:
                where = f"use the Ray cluster at {address}" if address else "start a Ray cluster here"
                raise EnvironmentUnavailableError(f"cannot {where}: {error}", START) from error
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._remote = ray.remote(max_retries=0)(_call)
        self._references: dict[Future[Any], Any] = {}

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        reference = self._remote.remote(function, *arguments)
        future: Future[Any] = reference.future()
        self._references[future] = reference
        future.add_done_callback(lambda done: self._references.pop(done, None))
        return future

    def withdraw(self, future: Future[Any]) -> bool:
        return False  # Ray does not tell whether it has begun

    def explain(self, error: Exception) -> Exception:
        errors = self._ray.exceptions
        if isinstance(error, errors.RayTaskError):
            return error.cause if isinstance(error.cause, Exception) else error
        if isinstance(error, errors.RayError):
            return WorkerDied(f"a Ray worker died: {type(error).__name__}", "look at the cluster's memory and its log")
        return error

    def stop(self) -> None:
        for reference in list(self._references.values()):
            self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()


def _reach(address: str) -> None:
    """Ray waits minutes for a cluster that is not there; so look first whether anybody listens."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", "local"
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentUnavailableError(f"cannot reach the Ray cluster at {address}: {error}", START) from error


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
