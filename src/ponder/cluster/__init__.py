"""Many machines: replicas of a model on a Ray cluster, and problems spread over them."""
