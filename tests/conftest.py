"""Every test sees eight CPU devices, so that no multi-device test can skip; compiling is quick."""

import importlib.metadata
import os

# Most of the time of these tests is compilation, and nothing here runs long enough to pay for
# thorough one. The command-line tests' processes inherit this.
QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Gone in 0.11, and a flag that XLA does not know ends the process.
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *QUICK))

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_terminal_summary(terminalreporter):
    """Prints how far from PyTorch the full-size models were at most.

    Here, as with several workers, the process that prints loads no other conftest.
    """
    rows = [
        (report.nodeid.rpartition("[")[2].rstrip("]"), *value)
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "parity"
    ]
    if rows:
        terminalreporter.section("largest absolute differences from PyTorch, float32")
        for name, what, difference, spread in rows:
            terminalreporter.write_line(
                f"{name:<28} {what:<14} {difference:.1e}  (values have a spread of {spread:.2f})"
            )
