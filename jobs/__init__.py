"""Commands: parse, call, print where."""
