# Untyped upstream: everything in it is Any, said openly, so that the rest can be strict.
from typing import Any

def __getattr__(name: str) -> Any: ...
