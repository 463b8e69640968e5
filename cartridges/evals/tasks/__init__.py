"""Tasks, one benchmark a file; each says its data set, licence, metric and what was published on it."""
