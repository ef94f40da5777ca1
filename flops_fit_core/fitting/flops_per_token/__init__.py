"""FLOPs per token as a curve in N, for runs with C other than 6 N D."""
