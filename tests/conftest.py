"""Every test session sees eight CPU devices, so that no multi-device test can skip."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
