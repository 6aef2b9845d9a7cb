"""MoEMoE in JAX: question-guided dense and sparse mixture-of-experts over several sources."""

__version__ = "0.1.0"
