"""
The memory of Triton's GPUs, as its metrics page tells it.
"""

import re

# A line for each GPU: nv_gpu_memory_used_bytes{gpu_uuid="GPU-..."} 4294967296
_LINE = re.compile(r"^nv_gpu_memory_(used|total)_bytes(?:{[^}]*})? (\S+)", re.MULTILINE)


def gpu_memory(page: str) -> tuple[str | None, str | None]:
    """Used and total of all GPUs together, as "4.2GB"; None if there is no GPU."""
    sums = dict[str, float]()
    for kind, number in _LINE.findall(page):
        sums[kind] = sums.get(kind, 0.0) + float(number)
    used, total = (sums.get(kind) for kind in ("used", "total"))
    return (
        None if used is None else f"{used / 1e9:.1f}GB",
        None if total is None else f"{total / 1e9:.1f}GB",
    )
