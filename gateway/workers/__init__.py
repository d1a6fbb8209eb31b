"""Several processes on the same ports: a supervisor, the template its workers are forked from, and the workers."""
