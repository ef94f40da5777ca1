"""Model family ``callable``: any function that makes a module."""
