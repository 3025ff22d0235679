"""The process that runs sessions: around each an event loop, models, a connection."""
