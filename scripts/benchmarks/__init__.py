"""One benchmark a file: `make(smoke)` gives contenders, ours first, aims, notes, and what a turn does."""
