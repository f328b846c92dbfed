# SPDX-License-Identifier: Apache-2.0
"""`python -m sdeivirt` is `sdeivirt`."""

import sys

from .cli import main

sys.exit(main())
