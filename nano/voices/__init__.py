"""The speech synthesizers that Nano's training speech comes from, one file an engine."""
