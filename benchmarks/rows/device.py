"""What computes. Asked in a process of its own, as some accelerators serve one at a time."""

import jax

from benchmarks.measure import Context


def kind(context: Context) -> str:
    """The name of the first device; "" for a CPU."""
    del context
    device = jax.devices()[0]
    return "" if device.platform == "cpu" else device.device_kind
