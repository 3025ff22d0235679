"""What a transcription is: pure, with no socket, no clock and no task."""
