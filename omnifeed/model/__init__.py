"""The unified model: an item encoder, a causal trunk, a retrieval head and a ranking head in one checkpoint."""
