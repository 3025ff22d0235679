"""One call from its first frame to its last, whatever its client speaks."""
