"""Slots, leases and the line, in Redis."""
