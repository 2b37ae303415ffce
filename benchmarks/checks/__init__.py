"""The items of benchmarks/gpu_check.py, each a function that yields its rows as it measures them."""
