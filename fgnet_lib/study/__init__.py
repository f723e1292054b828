"""The results table: its rows, the runs that measured them, and what a few runs let you claim."""
