"""Power laws for the best learning rate and batch, fitted to a grid of runs at several N and D."""
