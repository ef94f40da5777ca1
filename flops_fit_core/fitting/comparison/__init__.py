"""Compare two recipes: the compute-equivalent gain of one over the other.

``design`` pairs the runs, ``surface`` is the shared law, ``posterior`` computes intervals, ``compare`` is the
public function.
"""
