# SPDX-License-Identifier: Apache-2.0
"""What a machine is made of, as the stream tells it: the destination builds the same.

What belongs to a host (names, files, sockets) does not travel: the
destination says that for itself. Of arguments for QEMU the devices do, for
both sides to compare.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec

from ..asyncpf import OFF, AsyncPfSettings
from ..errors import MigrationError, SdeivirtError, StreamError
from ..machine import MACHINES
from ..machine.base import EngineOptions, MachineConfig
from ..ras.sources import ErrorSource
from ..sdei.events import EventDefinition
from ..sdei.policy import Policy
from ..smccc.ids import Conduit
from .sections import Record, Section, unpack

__all__ = ["CONFIGURATION", "Configuration", "read_configuration"]

CONFIGURATION = "configuration"


class Configuration(Record, frozen=True):
    """CONF: the members of :class:`MachineConfig` that a guest can tell apart. `engine` holds those of one kind.

    `async_pf` came with version 2: before, there were no asynchronous page faults. `error_sources` came with version 3.
    """

    VERSION: ClassVar[int] = 3

    machine: str
    name: str
    vcpus: int
    memory: int
    policy: Policy
    events: tuple[EventDefinition, ...]
    conduit: Conduit
    bootargs: str
    restart: bool
    seed: int | None = None
    watchdog: float | None = None
    engine: dict[str, str | bool] = msgspec.field(default_factory=dict)
    async_pf: AsyncPfSettings = OFF
    error_sources: tuple[ErrorSource, ...] = ()

    @classmethod
    def of(cls, kind: str, config: MachineConfig) -> Configuration:
        """The description of a machine."""
        return cls(
            machine=kind,
            name=config.name,
            vcpus=config.vcpus,
            memory=config.memory,
            policy=config.policy,
            events=tuple(config.events),
            conduit=config.conduit,
            bootargs=config.bootargs,
            restart=config.restart,
            seed=config.seed,
            watchdog=config.watchdog,
            engine=config.engine.travelling() if config.engine is not None else {},
            async_pf=config.async_pf,
            error_sources=tuple(config.error_sources),
        )

    def config(self, name: str, directory: Path | None, engine: EngineOptions | None) -> MachineConfig:
        """The machine to build here, with what the destination says for itself. Raises StreamError."""
        try:
            return MachineConfig(
                name=name,
                vcpus=self.vcpus,
                memory=self.memory,
                policy=self.policy,
                events=self.events,
                conduit=self.conduit,
                bootargs=self.bootargs,
                restart=self.restart,
                seed=self.seed,
                watchdog=self.watchdog,
                directory=directory,
                engine=engine.arrived(self.engine) if engine is not None else None,
                async_pf=self.async_pf,
                error_sources=self.error_sources,
            )
        except MigrationError:
            raise  # it can be, and this place is none for it
        except SdeivirtError as error:
            raise StreamError(f"the stream is of a machine that cannot be: {error.message}", error.hint) from error


def read_configuration(section: Section) -> Configuration:
    """The description in a stream, of a machine that can be. Raises StreamError."""
    try:
        configuration = unpack(section, Configuration)
    except StreamError:
        raise
    except SdeivirtError as error:  # an event or a policy that cannot be
        raise StreamError(f"the stream is of a machine that cannot be: {error.message}", error.hint) from error
    configuration.config(configuration.name, None, None)  # says what cannot be
    if configuration.machine not in MACHINES:
        raise StreamError(
            f"the stream is of a machine {configuration.machine[:40]!r}, and there is none such here",
            f"machines are {', '.join(MACHINES)}",
        )
    return configuration
