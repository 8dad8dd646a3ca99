"""The fault campaign: commands are killed, disks fill, files are damaged, inputs are wrong; what was finished must
survive. `make faults` runs all of it and prints a table, docs/reliability.md says what it means."""
