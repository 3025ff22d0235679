"""Recorded audio over HTTP: one engine, and a file for each service whose clients it answers."""
