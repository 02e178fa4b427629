"""What files of data are called: for the room that reads them, and for the one that is handed such a file for a model."""

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
