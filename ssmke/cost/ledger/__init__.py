"""The ledger: written while a run goes on, read back, summed up, and what it says about each second."""
