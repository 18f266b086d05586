"""What the labs and studies of Part I, Transformers, call beyond what every lab has: one file a topic."""
