"""
What is counted where Triton is asked, for the worker's page of metrics (worker/metrics.py).
"""

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

disable_created_metrics()  # a second line for each, with the time of the first
REGISTRY = CollectorRegistry()

SILENCES = Counter(
    "dalston_worker_triton_silences",
    "Times a Triton answered nothing, not even that it lives.",
    ["triton"],
    registry=REGISTRY,
)
AVOIDED = Counter(
    "dalston_worker_models_avoided",
    "Times a model failed and was avoided until it answered a probe.",
    ["triton", "model"],
    registry=REGISTRY,
)
LOADED = Histogram(
    "dalston_worker_model_load_seconds",
    "How long it took to load a model that was asleep when a session wanted it.",
    ["triton", "model"],
    buckets=(1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0),
    registry=REGISTRY,
)
LOADS_FAILED = Counter(
    "dalston_worker_model_loads_failed",
    "Times a model that was asleep could not be loaded.",
    ["triton", "model"],
    registry=REGISTRY,
)
