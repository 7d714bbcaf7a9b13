"""How many examples Hypothesis tries.

The environment variable WATTFARE_TEST_EXAMPLES multiplies all numbers: 10 for ten times as many,
0.5 for half of them. The Makefile sets it for each of its targets.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FACTOR = float(os.environ.get("WATTFARE_TEST_EXAMPLES", "1"))

#: The deadline and this check say nothing about the code: other work on the machine can slow down
#: any example.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def load_profile() -> None:
    """Loads the settings for tests without their own."""
    settings.register_profile("tests", UNTIMED, max_examples=_times(100))
    settings.load_profile("tests")


def examples(number: int, **more: int) -> settings:
    """Settings for a test that tries another number of examples than the usual 100."""
    return settings(UNTIMED, max_examples=_times(number), **more)


def _times(number: int) -> int:
    return max(1, round(number * FACTOR))
