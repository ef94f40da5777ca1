"""FLOPs per token as a curve in N, for runs whose C is not 6 N D."""
