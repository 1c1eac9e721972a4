"""Token shards and the streams read from them: the file format, what each rank reads, and how text becomes shards."""
