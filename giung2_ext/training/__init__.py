"""State, step, programs and the loop that runs them."""
