"""What a network's activations, statistics and gradients do while it trains."""
