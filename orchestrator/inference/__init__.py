"""How Triton is asked."""
