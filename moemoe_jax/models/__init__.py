"""The systems, put together from `moemoe_jax.nn`."""
