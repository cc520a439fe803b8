"""Looking after a machine and a store: what is wrong here, what can go, how two runs compare."""
