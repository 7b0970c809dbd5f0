"""Speed, measured: `make bench` runs every benchmark and writes `bench/results`; no test depends on a clock."""
