# SPDX-License-Identifier: Apache-2.0
"""A guest under load, a place for it to go to, the network between, and somebody who looks at both all the time."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from sdeivirt.control.client import VmClient
from sdeivirt.errors import MovedError, SdeivirtError, StateError, UnknownVmError
from sdeivirt.migration.status import MigrationStatus

from .control_support import LIMIT, VmProcess, wait_until
from .frame_proxy import Fault, FrameProxy
from .mover_support import Injector, Mover, check_counts

__all__ = ["GONE", "HERE", "NOWHERE", "STALL", "THERE", "Scene", "Watch", "no_orphans", "runs"]

STALL = 3  # seconds; less would be a fault by itself where the host is busy
_TICK = 0.005
# What an injection into a VM raises that is no more, or whose guest has left.
GONE = (MovedError, StateError, UnknownVmError)

HERE, THERE, NOWHERE = "here", "there", "nowhere"


class Watch:
    """Never do both sides run the guest. A context manager, on a thread of its own, and a failure at its end.

    The side that the guest goes to is asked first. It never comes back from there:
    if it runs there, and after that here, it runs twice.
    """

    def __init__(self, here: str, there: str) -> None:
        self._here, self._there = here, there
        self._clients: dict[str, VmClient] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.looks = 0
        self.twice = False
        self.error: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._stop.wait(_TICK):
                self.twice = self.twice or (self._running(self._there) and self._running(self._here))
                self.looks += 1
        except BaseException as error:
            self.error = error
        finally:
            for client in self._clients.values():
                client.close()

    def _running(self, name: str) -> bool:
        try:
            if name not in self._clients:
                self._clients[name] = VmClient(name, 5.0)
            return bool(self._clients[name].execute("query-status")["running"])
        except SdeivirtError:  # it is not there yet, or no more
            if client := self._clients.pop(name, None):
                client.close()
            return False

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            if self.error is not None:
                raise self.error
            assert self.looks
            assert not self.twice, "the guest has run on both sides at once"


def runs(vm: VmProcess) -> bool:
    """Whether a process runs a guest."""
    try:
        with VmClient(vm.path.name, 5.0) as client:
            return bool(client.execute("query-status")["running"])
    except SdeivirtError:
        return False


class Scene:
    """The two sides. A context manager, which leaves nothing behind that runs, and says so where something does.

    `words` are for the destination, before which `prefix` is run. Who asks a side to end may do so with `ask`.
    """

    def __init__(
        self,
        runtime: Path,
        fault: Fault | None = None,
        kind: str = "unicorn",
        prefix: Sequence[str] = (),
        ask: Callable[[str], None] | None = None,
    ) -> None:
        self.runtime = runtime
        self.uri = f"unix:{runtime}/there.sock"
        self.mover = Mover(runtime, kind, "case=load signals=1 rate=16", vcpus=2, memory="16M")
        self.here = self.mover.vm
        self._proxy: FrameProxy | None = None
        try:
            self.there = VmProcess(runtime, "--incoming", self.uri, name="there", prefix=prefix)
            self.mover.vms.append(self.there)
            self.mover.until("MOVER runs")
            self.there.wait_err("waiting for a guest")
            self.before = self.mover.beat()
            self._proxy = FrameProxy(
                self.uri, f"unix:{runtime}/proxy.sock", fault, self.kill, ask if ask is not None else self.ask
            )
        except BaseException as error:
            self.mover.__exit__(type(error), error, error.__traceback__)
            raise

    @property
    def proxy(self) -> FrameProxy:
        assert self._proxy is not None
        return self._proxy

    def _side(self, side: str) -> VmProcess:
        return self.here if side == "source" else self.there

    def kill(self, side: str) -> None:
        vm = self._side(side)
        vm.signal(signal.SIGKILL)
        vm.process.wait()

    def ask(self, side: str) -> None:
        self._side(side).signal(signal.SIGTERM)

    def injector(self, seed: int) -> Injector:
        return Injector(lambda: self.mover.name, seed=seed, vcpus=2, moved=GONE)

    def migrate(self, stall: float = LIMIT) -> MigrationStatus | None:
        """How it went, as the source says; None if the source ended before it could. `stall` is in seconds."""
        try:
            with VmClient("vm") as client:
                client.execute("migrate", **{"uri": self.proxy.uri, "stall-limit": int(stall * 1000)})
                status = client.wait_migration()
                while status.active:
                    status = client.wait_migration()
                return status
        except UnknownVmError:
            return None

    def where(self, patient: bool = False) -> str:
        """Which side has it, when all is settled.

        `patient`: the destination does not mind, and waits for another guest.
        """

        def settled() -> bool:
            there, here = runs(self.there), runs(self.here)
            ended = [vm for vm in (self.here, self.there) if vm.process.poll() is not None]
            if patient and (here or self.here in ended):
                return True
            return bool(ended) and (here or there or len(ended) == 2)

        wait_until(settled, f"{self.here.err} {self.there.err} {self.proxy.text()}")
        if runs(self.here):
            return HERE
        return THERE if runs(self.there) else NOWHERE

    def stays(self, *codes: int) -> None:
        """The guest goes on here, and the destination has ended, with one of these codes, and said why."""
        assert runs(self.here)
        code = self.there.wait()
        assert code in codes, self.there.err
        if code == 1:
            assert "error: the guest did not come: " in self.there.err
        if code >= 0:
            assert not self.there.path.exists()
            assert not (self.runtime / "there.sock").exists()

    def finish(self, injector: Injector) -> None:
        """The guest has forgotten nothing, its books and ours are the same to the last event, and it ends well."""
        mover = self.mover
        status, beat = mover.settle()
        beat.goes_on_from(self.before)
        check_counts(status, beat, injector.injected)
        mover.quit()

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        print(self.proxy.text())
        self.proxy.close()
        self.mover.__exit__(kind, error, trace)
        if error is None:
            no_orphans(self.runtime)


def no_orphans(runtime: Path) -> None:
    """No process is left whose command line has that directory in it: a QEMU that survives us would run the guest."""

    def left() -> list[bytes]:
        lines = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                lines.append((process / "cmdline").read_bytes())
        return [line for line in lines if bytes(runtime) in line]

    wait_until(lambda: not left(), "a process is left")
