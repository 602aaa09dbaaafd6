"""The command line. Importing it loads no torch."""
