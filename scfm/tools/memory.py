"""How much a result may take in memory, and what to do where it takes more.

in   the shape of a float32 array
out  nothing, or a ConfigError that names the way out
"""

import math

from scfm.errors import ConfigError

MEMORY_LIMIT = 4 * 2**30  # bytes of one result kept in memory; larger ones go to a file


def check_fits(shape: tuple[int, ...], what: str, remedy: str) -> None:
    """Refuse a float32 array beyond ``MEMORY_LIMIT`` before any work is done."""
    size = 4 * math.prod(shape)
    if size > MEMORY_LIMIT:
        dimensions = " x ".join(f"{n:,}" for n in shape)
        raise ConfigError(
            f"{what} would be {dimensions} numbers, {size / 2**30:,.1f} GB; scfm keeps at most "
            f"{MEMORY_LIMIT / 2**30:g} GB of a result in memory. {remedy}"
        )
