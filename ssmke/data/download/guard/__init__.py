"""What img2dataset runs under; `main` is a script for the python of another environment."""
