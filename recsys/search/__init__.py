"""Search: students and compressions on the frontier of accuracy, bytes and milliseconds."""
