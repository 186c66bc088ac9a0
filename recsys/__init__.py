"""Small recommenders that are as good as big ones: train, distil, compress, search, serve."""
