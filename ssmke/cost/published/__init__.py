"""Published runs, their dollars from their factors, and their quality."""
