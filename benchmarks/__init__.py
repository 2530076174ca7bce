"""Measurements of annotary against what its users would otherwise run; results are in docs/benchmarks.md."""
