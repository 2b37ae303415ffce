"""How the C library hands out a CPU process's memory."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGE = 4 << 20  # bytes


def settle_memory() -> None:
    """Let tensors of LARGE and more leave no hole when they go, and smaller ones be had again without the system.

    By itself glibc raises the size that counts as large to 32 MB: the tensors of a full-size training step then leave
    holes that no other fits into (0.6 GB at batch 2), while the small ones of a small model are given back to the
    system and cleared by it at each step (a tenth of its time; benchmarks/RESULTS.md). Does nothing where the C library
    is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
