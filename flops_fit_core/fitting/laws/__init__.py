"""Loss as a function of N and D: the forms, their fit to runs, and the optimum along a budget."""
