"""Search for the smallest student that keeps the performance of its teacher."""
