# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests; nothing here needs an engine."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("sdeivirt", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sdeivirt")
