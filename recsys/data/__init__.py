"""Data: from a raw log to memory-mapped sequences and packed batches."""
