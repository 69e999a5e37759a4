"""Benchmarks anyone can run: `python -m bench.NAME`. Ratios within one run, several rounds, medians."""
