"""Model family ``hf``: any configuration of the library transformers."""
