"""What a prepared folder is: manifest, vocabulary, one file a split, and the loader that reads it in batches."""
