"""The live view of a sweep: in a terminal, in a notebook, or as lines of text.

:class:`~flops_fit_core.study.live.progress.SweepProgress` is a logger of the driver. ``flops-fit watch`` shows the
same view of a sweep that another process drives, from the stored results and the drivers' files.
"""
