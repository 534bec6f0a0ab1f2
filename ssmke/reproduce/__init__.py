"""The published tables, run again by one command each: what runs, what it will cost, what came out."""
