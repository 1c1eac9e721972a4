"""From trained runs to a record: seeds and significance, the submission folder, and its audit."""
