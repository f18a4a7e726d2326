"""What the benchmarks share: command line, tables, figures, the machine, peers and finished runs."""
