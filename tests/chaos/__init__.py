"""Kill tests: faults at random moments under load, and the ledger's invariants behind them."""
