"""Other projects, measured at the same work as ours: their environments, and the programs that run there."""
