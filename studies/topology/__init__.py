"""Whether predicted masks hang together as the true ones do, and where they do not."""
