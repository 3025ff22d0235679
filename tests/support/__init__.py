"""
What the tests share: real parts, started and stopped, and stand-ins where a real one cannot be made
to fail as needed.
"""
