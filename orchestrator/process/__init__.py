"""What every process has, whatever it does: logs, traces, request ids, memory."""
