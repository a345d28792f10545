"""Training: a gang of workers that runs a program over shards of the training rows."""
