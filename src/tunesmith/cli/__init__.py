"""The command line: one short file per command, each parses, calls the api and shows."""
