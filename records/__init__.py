"""From trained runs to a record: seeds and significance, the folder to hand in, and its audit."""
