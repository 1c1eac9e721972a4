"""Token shards and streams: the file format, what each rank reads, and how text becomes shards."""
