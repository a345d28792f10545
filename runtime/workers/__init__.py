"""What runs in a worker process: tasks and their inputs, handlers, and how a worker lives, hangs and leaves."""
