"""
What a metric of this process has counted so far.
"""

from prometheus_client import Counter, Histogram


def counted(metric: Counter | Histogram, *labels: str) -> float:
    """Under these values of its labels; 0 if nothing was."""
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(("_total", "_count")) and tuple(sample.labels.values()) == labels
    )
