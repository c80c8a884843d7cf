"""Training through a stream of steps: what protects earlier steps without their data, and what keeps some of it."""
